// Package pki is who is who in a cluster: a private certificate authority, the identities in its certificates, and TLS
// configurations that know them.
//
// # What it knows
//
// An [Identity] is a cluster, a role and a name, and stands in a certificate as one URI, such as revokd://prod/node/n1. Nodes are
// recognised by it and not by DNS names: they are dialled by address. The names and addresses in a node's certificate are
// for clients that are not revokd. [Create], [Open] and [Authority.Issue] make the files; [Load] makes a [Source] of TLS
// configurations of them.
//
// # What it promises
//
//   - TLS 1.3, nothing older. No resumption: every connection shows and verifies its certificates.
//   - A peer that shows a certificate is refused unless it chains to our authority at this time, is for the use that it is put to,
//     and has exactly one well-formed identity of our cluster. A server must be a node, and the one expected if one is.
//   - Files that change are taken together or not at all. What cannot be used leaves the old ones in force.
//   - An issued file survives power loss, has mode 0600, and replaces another only if that is asked for.
//
// Not promised: revoking a certificate, except by a new authority; and ending connections whose certificate has expired since.
//
// # Concurrency
//
// The methods of a Source may be called concurrently; [Source.Run] once. An Authority may be used concurrently too. Nothing
// here reads the clock. The zero values of Source and Authority are not usable; the zero Identity is nobody.
package pki
