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
// # Concurrency
//
// All methods of [Client] may be called concurrently. Open starts the goroutines that keep the replica, and [Client.Close] ends
// them and returns when they have ended. The zero Client is not usable.
package client
