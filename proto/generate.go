// Package proto holds the public API of revokd; its Go code is generated from revokd/v1.
package proto

//go:generate go tool -modfile=../tools/go.mod buf generate
