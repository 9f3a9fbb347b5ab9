//go:build !linux

package ttlstore

import "errors"

const canMap = false

func mapMemory(int) (whole, use []byte, err error) { return nil, nil, errors.ErrUnsupported }

func unmapMemory([]byte) error { return nil }
