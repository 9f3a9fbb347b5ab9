// Package node is the process: it assembles the table, the clock and the journal, owns every goroutine
// that keeps them, and knows the order in which a write becomes an acknowledgement.
//
// # What it promises
//
//   - A write that returned without an error is enforced by every later check on this node and has the durability that its
//     receipt states. With a journal that is: fsynced before it is enforced, enforced before it is acknowledged.
//   - A write that returned an error of the disk, of a context or of a full queue may have happened or not; the same call
//     again writes it again. With the same idempotency key it moves no cutoff.
//   - A check never waits for a writer, a disk or a sweep. While the journal is read at the start a check answers
//     Revoked or Unknown, never Active.
//   - When memory or disk is full writes fail and checks go on. Nothing live is ever dropped to make room.
//   - Records expire by guarded time (package internal/clock): no jump of the wall clock makes the node forget.
//
// # The order of a write
//
//	validate, plan -> record -> covers? -> journal: number, write, fsync -> merge -> receipt
//
// Merging before the disk would make a retry after a failure find the record in memory, answer "covered"
// and acknowledge what is on no disk.
//
// # Concurrency
//
// All methods of [Node] may be called concurrently. [New] starts nothing and takes the lock of the data
// directory; [Node.Run] must be called once, ends when its context does or the start fails, and returns when everything it
// started has ended. The zero Node is not usable.
package node
