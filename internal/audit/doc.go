// Package audit keeps the record of who changed what: files of JSON lines that are only ever appended to, and chained by hashes.
//
// # What it knows
//
// Lines, files and their chain. What a write is and who may do it the callers know; they hand over an [Event] with names of claims and a fingerprint, and
// values only where the operator has asked for them.
//
//	audit-0000000000000001.jsonl    named after the number of its first line
//	{"n":1,"event":"begin","time":"...","format":1,"node":"n1","prev":"00..","seal":"sha256","hash":".."}
//	{"n":2,"event":"write","time":"...","method":"Revoke",..,"outcome":"revoked",..,"hash":".."}
//
// The hash of a line is SHA-256, or HMAC-SHA-256 with a key, over the hash of the line before (32 bytes) and the line's own bytes up to `,"hash":`. A file
// opens with a line "begin" that repeats the last hash of the file before, so that the chain goes on across rotation and restart and what is left of it can
// be checked when older files have gone.
//
// # What it promises
//
//   - When [Log.Append] returns nil the lines have been written to the file (they survive the end of the process). They are synced within a second, at
//     rotation and at the end: a power cut can cost the last second.
//   - Nothing is cut off. Bytes at the end that are no whole line, which a crash or a full disk leaves, stay, and a line "torn" behind them states how many
//     they are and their SHA-256. Lines that could not be written are counted, and a line "lost" says how many, once the file can be written again.
//   - [Verify] finds the first line that was changed, removed, inserted or moved. It cannot find that lines were cut off at the end, or that all of it was made anew, by somebody
//     who can write the files (and has the key, if there is one): for that a later state must be known from elsewhere, see [Head].
//
// # Concurrency
//
// [Open] starts nothing; [Log.Run] is called once and returns when all that it started has ended. Append and Stats may be called by any number of goroutines. The zero Log is not
// usable.
package audit
