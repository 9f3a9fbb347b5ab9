// Package api is the front of a node: one listener for the public API of package revokdv1 as gRPC, gRPC-Web and
// JSON over HTTP, with reflection, health, readiness and metrics.
//
// # What it knows
//
// It translates. Requests become [revocation.Request] and [revocation.Claims], answers become messages, and errors
// become codes with an ErrorDetail, in status.go and nowhere else. It decides nothing about tokens and stores nothing.
//
//	POST /revokd.v1.RevocationService/{Revoke,RevokeBatch,RevokeStream,Block,Unblock,Rehearse,Check,CheckBatch,Explain,Status}
//	POST /revokd.v1.DevService/MintToken   only with Config.Dev
//	POST /grpc.health.v1.Health/Check      serving as long as the node is ready
//	POST /grpc.reflection.v1*.ServerReflection/ServerReflectionInfo
//	GET  /           a short text that teaches
//	GET  /healthz    the process is alive
//	GET  /readyz     200, or 503 with what the node waits for
//	GET  /metrics    Prometheus
//	POST /revokd.v1.ReplicationService/{Exchange,Lookup}   for nodes and client replicas
//	GET  /filter     all live records as a portable Bloom filter, for client replicas
//	POST /backup     the journal as one file with checksums
//	GET  /.well-known/jwks.json            only with Config.Dev
//
// # What it promises
//
//   - A check is a question: that a token is revoked, or cannot be judged, is an answer (HTTP 200) and no error.
//   - A write that is answered without an error has the durability that its receipt states; see package node.
//   - An unknown member in JSON is refused: a caller who misspells a field must not revoke less than he means.
//   - Every refusal names the field, the kind and the limit, and never a token, a claim's value or a key; nor does the log.
//   - Nothing is unbounded: connections, streams, headers, bodies, the bytes of all requests together, items and time.
//   - With Config.TLS or Config.Credentials every caller is held to the role of his certificate or token, by the table in access.go, and writers to what
//     they are granted; what has no row there nobody may call. [Caller] is who it is. Without either everybody may do everything, so that only loopback
//     will do.
//   - Web pages cannot use the API of a developer's machine: other Host names and cross-site requests are refused, and no
//     procedure answers a GET.
//
// # Concurrency
//
// [New] starts nothing. [Server.Serve] is called once, and returns when all that it started has ended. The zero
// Server is not usable.
package api
