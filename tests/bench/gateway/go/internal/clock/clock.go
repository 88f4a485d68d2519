// Package clock reads clocks that several processes share.
package clock

import (
	"fmt"
	"syscall"
	"time"
	"unsafe"
)

const clockMonotonic = 1

var (
	start = time.Now()
	base  = mustRead(clockMonotonic)
)

// Micros is CLOCK_MONOTONIC in microseconds: the same in every process of the machine. Go's own monotonic time is
// the same clock, but hides its zero, so that is read once; after that no system call is needed.
func Micros() int64 {
	return (base + time.Since(start).Nanoseconds()) / 1000
}

// ProcessNanos is the CPU time all threads of a process have used, in nanoseconds.
func ProcessNanos(pid int) (int64, error) {
	// The id of a process's clock, as clock_getcpuclockid(3) makes it.
	const scheduler = 2
	return read((^pid)<<3 | scheduler)
}

func mustRead(id int) int64 {
	value, err := read(id)
	if err != nil {
		panic(err)
	}
	return value
}

func read(id int) (int64, error) {
	var spec syscall.Timespec
	_, _, errno := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, uintptr(id), uintptr(unsafe.Pointer(&spec)), 0)
	if errno != 0 {
		return 0, fmt.Errorf("clock %d: %w", id, errno)
	}
	return spec.Nano(), nil
}
