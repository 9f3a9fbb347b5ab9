// Package voters agrees on who votes in a cluster: a numbered list of node names with the incarnations of their data directories,
// hashed. What acknowledges a write and what makes a view fresh is a majority of exactly one such list.
//
// # What it knows
//
// Names, incarnations, and who has caught up with whom. It knows no records, no sockets and no clock: a [Machine] is a pure state
// machine; [Machine.Step] takes one [Event] and returns what is to be done, in order. The same events give the same outputs.
//
// # What it promises
//
//   - At most one configuration is ever decided for a number (but see [AcceptLoss]): the successor of a configuration is decided by single-decree
//     Paxos among the voters of that configuration; the first one, by all nodes that are in it.
//   - Successive configurations differ by one change: a name more, a name less, an incarnation replaced, or that incarnation voting again. Every acceptor checks it.
//   - If acknowledgements and views are counted with [Machine.Counts] and [Config.Quorum], whatever was acknowledged by a majority
//     is held by a voter of every majority, now and in every later configuration, as long as no more voters are lost than a majority can miss at a time.
//   - With a majority of the voters connected and caught up, what is proposed is decided, whoever else is dead.
//
// # How holders are kept
//
// Let n be the length of a list and W its majority. Records are copied in no order, so it is not enough that the majorities of two
// lists overlap: two removals in a row would leave a list that nobody who acknowledged is in. What is kept instead: W voters of the list hold
// each acknowledged record; silent voters count as if they held it.
//
//   - Add: the new node has caught up with W voters, which have adopted the list that it is added to.
//   - Remove and Add leave a list that is not yet settled: it may lack one holder (a record acknowledged under the old list while the
//     node caught up; one holder removed from an odd list). It settles when W of its voters have each caught up with W of them.
//     Only a settled list is changed, and no removal leaves fewer that vote than a majority. Nodes that are level settle it in one round of views.
//   - A new incarnation of a voter (wiped, or salvaged) is first recorded as silent: from then on nobody counts what the old one acknowledged. It then
//     catches up with n - W + 1 voters that have recorded it, and votes again. Nodes do both for themselves; no operator is needed. A silent
//     voter decides on configurations all the same: its ballots are as old as its incarnation.
//   - Evidence of catching up belongs to one configuration: a voter that has adopted it gives no more acknowledgements under an older one.
//
// Recording an incarnation takes W voters other than it. In a list of two that has lost one there is no such majority, nor in any list that has lost
// more than it can miss: then only [AcceptLoss] goes on, which is the operator's word, not an agreement. It begins a
// new order of numbers ([Config].Losses), so that it outranks whatever the lost ones may still decide.
//
// # Trust, learning
//
// Messages come from peers that the transport has authenticated, and are believed: an adopted configuration is taken over from
// anybody, voter or not. Their size and form are checked. Two different lists of one number are a conflict: nodes that are named by both stop voting.
//
// # What the caller owes
//
// [Persist] is durable before anything behind it is done. Each acknowledgement and each answer about freshness carries [Machine.Hash] and the
// incarnation, and is given only while [Machine.Votes]. [CaughtUp] is reported only for what is durable. A state that cannot be read costs the
// incarnation, and so does a directory that was copied or restored from a backup.
// [Bootstrap] is for the birth of a cluster: nodes that have lost all their directories and are told to form a list make another cluster.
// A first list that was accepted by some while one of its nodes lost its directory cannot be completed: begin again with empty directories.
//
// # Concurrency, zero value
//
// A Machine is not safe for concurrent use and starts nothing. A [Config] is a value that nobody changes; its zero value is "none yet", in which
// nobody votes. The zero Machine is not usable.
package voters
