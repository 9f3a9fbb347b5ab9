package ttlstore

import "golang.org/x/sys/unix"

const canMap = true

// hugeBytes is the size of a huge page on the common machines.
const hugeBytes = 2 << 20

func mapMemory(size int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err == nil && size >= hugeBytes {
		_ = unix.Madvise(b, unix.MADV_HUGEPAGE) // fewer misses of the address cache; where there are none, all works without
	}
	return b, err
}

func unmapMemory(b []byte) error { return unix.Munmap(b) }
