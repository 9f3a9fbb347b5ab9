// Package journal is a log of fixed-size records that have deadlines, with a few keyed values (metadata) beside them.
//
// It knows bytes and deadlines, and nothing of what they mean. It is not a database: records are read back at a start only, all
// of them, in any order and some of them twice; whoever reads them joins them in an idempotent way. Nothing can be changed or
// removed but by its deadline. In return a write costs one write and one sync, shared by all who wait, and every fault has a
// simple answer.
//
// # What it promises
//
//   - A batch that [Journal.Append] has acknowledged is on disk, all of it: it survives the end of the process at any moment and a
//     power loss, until its records' deadlines have passed. A batch is found whole or not at all, and none without those before it.
//   - After a failed write or sync the file is never written again and the batch is never acknowledged. Whether the disk
//     takes a new file decides: the journal goes on in it, or refuses writes for good, or, on a full disk, until space returns.
//     [Journal.Err] and [Stats] say so; reading goes on.
//   - Metadata is never newer than the records written before it, and never older than acknowledged.
//   - [Journal.Expire] removes no record whose deadline is now or later unless its owner says that another one supersedes it, and keeps
//     the space in proportion to what lives. It works
//     beside writes.
//   - What is damaged is reported with file and offset as a [*DamageError], never skipped. [Repair] keeps the rest.
//   - One process at a time has a directory ([ErrLocked]); what a later version wrote is left alone ([ErrNewerFormat]).
//
// # What it assumes of the disk
//
// What a successful fdatasync covered stays; what was not synced may be there, in any order of sectors, or not, or torn. Names
// that were made, changed or removed are durable when their directory was synced, and each rename happens or does not. A sync
// that failed proves that nothing is known, and one that succeeds later proves nothing either. Reads may fail or return
// other bytes than were written: every frame has a checksum. Two mistakes of a disk cannot be told from a crash, and are taken for
// one: the last commit of the log damaged, and the last segment cut short. Whoever needs to know compares with a copy.
//
// # Layout
//
//	LOCK                       held with flock
//	FORMAT                     text: version, record size, key, incarnation, CRC-32C
//	wal/0000000000000007.wal   segments: the log, 64 MiB each
//	exp/h-472223-9.seg         what lived on, by the hour (h), the day (d) or 512 days (f) of its deadline, with a number
//	wal/*.tmp, exp/*.expired   steps that were interrupted; they do not count
//	quarantine/                what [Repair] could not read
//
// Segments and expiry files are frames, one behind the other, little-endian and aligned to 8 bytes:
//
//	 0  4  magic 0x0a46ab7f          16  8  number of the segment or file
//	 4  1  version 1                 24  4  metadata entries
//	 5  1  type                      28  4  CRC-32C of the offset in the file and of all other bytes
//	 6  2  zero                      32     records, then entries, then zeros up to the length
//	 8  4  length behind the header
//	12  4  records
//
// An entry is the length of its key (4), the length of its value (4; 0xffffffff: the key is deleted), key and value. The number and the
// offset in the checksum make a frame valid in its place only: old bytes of a block that was used before are not taken for new ones.
//
// The types: a head (1) begins a segment and has all metadata, what FORMAT says, and where the log comes from: the segment before
// and how many of its bytes count. Data (2) is a commit. An end (3) closes a segment in an orderly way. Expiry (4) is part of a file of exp/.
// 5 and 6 begin and end a backup. Numbers of types are append-only. Which files of exp/ count, and how long they are, is a
// metadata entry, so that one commit changes it as a whole: at every moment each live record is in exactly the files that count.
//
// A segment gets its name when its head is durable. So the segment with the largest number is where the log ends, bytes behind its last
// valid frame are a torn tail and are cut, and everything else that cannot be read is damage. Files of an earlier
// run are not written again, but for those of exp/ behind their valid length: each run begins a segment, whose head repeats the last
// commit if it is not known to be durable.
//
// # Use
//
// [Open], [Journal.Replay], then [Journal.Run] in a goroutine of the caller; Append and Expire from anywhere; cancel Run; [Journal.Close].
// Open starts nothing, Run returns when everything that was queued is decided. The zero [Config] needs Dir and RecordSize; its other fields
// have defaults. A zero [Journal] is not usable.
//
// Append, AppendAsync, Expire, Backup, Stats, Err, Get and Keys may be called concurrently, also while Run works. Assign, Committed and the
// callbacks of AppendAsync are called by the goroutine of Run, one at a time in commit order, and must not wait for the journal. Batches
// belong to the journal until they are decided; slices that Get returns belong to the caller. The queue is bounded: [ErrBusy].
package journal
