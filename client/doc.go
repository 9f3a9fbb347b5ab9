// Package client is a live replica of a cluster's revocations inside a service: it answers "is this token revoked?" from
// its own memory in well under a microsecond, and knows how old its answer may be.
//
// # What it knows
//
// [Open] connects to any node of the addresses given, takes the fingerprint key and the policy from it, copies the records and follows the
// stream. When the node goes away another one takes over; what the replica holds it keeps, and only the difference is sent.
//
// # What it promises
//
//   - [Client.Check] reads memory: no network, no lock, no allocation. In [Filter] mode, where not all is in memory, a check that
//     the filter cannot answer asks a node.
//   - A token that a majority of the voters hold as revoked is never called Active later than MaxStaleness after they said so. A replica that
//     cannot show that its view is fresh answers Unknown; so does one that has just been opened. What Unknown means is for
//     [Config.OnUnknown] to say; the default is to refuse.
//   - Its own clock alone times its view: it asks, and the answer counts from when it asked.
//   - A write through the client is seen by checks of the same client when it returns.
//
// # Memory
//
// Per record, and for 1 M and 10 M of them:
//
//	Full     54 bytes, outside the Go heap             54 MB    530 MB
//	Filter   2.1 bytes, and 60 for each recent one    2.2 MB     22 MB
//
// Recent records are those that came after the filter was made. Another filter is fetched when they are more than 65 536 and a sixteenth of those in it:
// at most 8 MB beside 1 M, 42 MB beside 10 M, unless they come faster than nodes make filters; while one takes the place of the other both are held.
// With a filter, 1 in 3 000 lookups of what was never revoked is in doubt, about 1 in 1 000 checks with three kinds of revocations, whatever the
// number of records; such a check, and that of a token whose revocation is older than the filter, asks a node, by fingerprint. Answers are kept for
// 5 seconds, or half of MaxStaleness, and until a record of their key comes; a verdict is as old as the older of this view and the node's. If no node answers
// within AskTimeout it is Unknown.
// 100 000 registrations of [Client.OnRevoked] take about 500 bytes each, claims apart.
//
// # Concurrency
//
// All methods of [Client] may be called concurrently. Open starts the goroutines that keep the replica, and [Client.Close] ends
// them and returns when they have ended. The zero Client is not usable.
package client
