// Package cluster knows who is there: it runs hashicorp/memberlist for membership, failure detection and a few hundred bytes
// about each node, and keeps joining until everybody that should be there is. No record travels here: memberlist's broadcasts lose
// messages and its state exchange refuses what is large; see package replication for how records move.
//
// # What it promises
//
//   - Rejoin for ever: every round, about two seconds, each seed is resolved anew and seeds and remembered peers that are not
//     live members are asked to join, 16 of each. memberlist alone never heals a partition that lasts longer than its memory of the dead.
//   - Nothing crosses a network in the clear: without a key [New] refuses to gossip beyond loopback, and with a key what is not
//     sealed with a key of the ring is dropped before memberlist sees it. The format is memberlist's own.
//   - Only membership passes: user messages, user state and compression are refused, in packets and in streams, and so are incarnations
//     near the end of their 32 bits, with which one message would remove a member for good.
//   - Admission is decided for each node on its own, before anything is known about it: name, address, metadata, cluster id.
//   - Suspect and dead are opinions about a member. They are reported, and close nothing.
//
// # What it does not promise
//
// Whoever holds a key of the ring is trusted: it can announce any name, accuse any member and replay what it has seen, and
// a listener can repeat a sealed packet. So nothing that decides a verdict may rest on gossip. A key holder removes nobody for good, but can
// make others believe forged metadata of a member, or leave it with that of its life before a restart, until it has been away for a minute: change the key.
//
// # Keys
//
// A ring of up to eight keys: the first seals, all open. To rotate, install the new key on every node, then use it on every node, then remove the old one on
// every node; each step everywhere before the next, by whoever calls. Keys are named by an id, a hash. 2^32 messages is the most for one
// key; [Stats] counts those of this node. memberlist's own metrics go nowhere unless a program sets a global sink for them.
//
// # Concurrency
//
// All methods of [Members] may be called concurrently. [New] starts nothing; [Members.Run] is called once and returns when what it
// started has ended, but for timers of memberlist that expire within seconds and touch nothing. The delegates that
// memberlist calls under its lock take one short lock of their own and never wait. The zero Members is not usable.
package cluster
