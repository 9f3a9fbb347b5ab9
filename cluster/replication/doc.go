// Package replication brings every replica of a set of records to the same content. It is a state machine without
// goroutines, clock, network or randomness of its own: [Replica.Step] takes an event with the time and returns what is to be
// done, [Replica.Fill] writes the next message for a peer. So a thousand replicas run from one seed, with the same trace each time.
//
// # What it knows
//
// Records of [RecordSize] bytes with a key, a deadline and the id of a definition, no more; how two of them join is the [Store]'s
// affair. An origin is one run of one node in one lane; it numbers its records 1, 2, 3, … without holes, and (origin, number), the
// record's dot, stands for one exact content. A vector says up to which number of each origin a replica holds everything.
//
// # What it promises
//
//   - A vector never claims what is not held: it rises over numbers that arrived without a hole, or at the end of a scan that was
//     copied completely, to what its server held before the scan began.
//   - The durable vector stays behind what the host has reported durable, in the order in which it was handed over.
//   - What any connected peer holds arrives, whatever was lost on the way, as long as somebody holds it: vectors tell, logs and scans bring it.
//   - A view of a peer is as old as the question that the peer's vector answered, by this replica's clock alone.
//   - Memory is bounded: one log of LogBytes for everybody, cursors and vectors for each peer, no queue of records for anybody.
//
// # How records travel
//
//	push     an origin's node sends its records to every peer as they are written, from the log behind a cursor for each peer
//	pull     who sees in a peer's vector what it does not hold, and does not get it from the origin's node, asks that peer
//	scan     what no log has any more is sent from the store, in key order, filtered by the vector of who asks; several peers can
//	         serve parts of the key space; the vector rises when all parts have arrived
//	audit    two replicas compare sums over what both vectors cover, and over everything where they have long been equal; differences, which vectors cannot see, are exchanged
//
// The host chooses with whom it holds sessions: in a small cluster everybody with everybody; in a large one each with a few, and pulls relay.
//
// # Concurrency
//
// A Replica is for one goroutine at a time; the host holds a lock around its methods, and around nothing that waits. The zero Replica is not usable: see [New].
package replication
