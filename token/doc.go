// Package token verifies JSON Web Tokens (RFC 7519) before they are revoked or checked: strictly, with the keys of
// the issuers that it was configured with, and with nothing that the token itself says about keys.
//
// # What it promises
//
//   - [Verifier.Verify] returns claims only of a token whose signature was made with a key of its issuer, by an algorithm
//     that the issuer is allowed and the key is for. The signature is judged before times, types and audiences.
//   - One token has one spelling: strict base64url, no duplicate names in header or payload, nothing around it.
//   - A key set that cannot be fetched keeps the last good one; without any, tokens of the issuer get [ErrKeysUnavailable].
//     Fetching is bounded in size, time, rate and keys; jku, x5u, x5c and jwk in a header are never used.
//   - Errors never hold a token, a claim's value or a key id.
//
// # Concurrency
//
// A [Verifier] may be used concurrently. [NewVerifier] starts nothing; [Verifier.Run] fetches and refreshes key sets until its
// context ends. Issuers with keys in the configuration or a file work without Run, but files are read anew only by it.
// The zero Verifier is not usable.
package token
