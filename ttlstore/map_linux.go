package ttlstore

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const canMap = true

// mapMemory maps size bytes, a multiple of hugeBytes, at such a multiple, and asks for huge pages: with small ones the misses of the
// address cache cost more than those of the data. It returns the whole mapping, for unmapMemory, and what is to be used.
func mapMemory(size int) (whole, use []byte, err error) {
	whole, err = unix.Mmap(-1, 0, size+hugeBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	if err != nil {
		return nil, nil, err
	}
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(whole)))) & (hugeBytes - 1)
	use = whole[skip : skip+size]
	_ = unix.Madvise(use, unix.MADV_HUGEPAGE) // where there are none, all works without
	return whole, use, nil
}

func unmapMemory(whole []byte) error { return unix.Munmap(whole) }
