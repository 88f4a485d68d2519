package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"hearth.test/gatewaybench/internal/clock"
)

// quantiles of times in microseconds, given out in milliseconds.
type quantiles struct {
	P50 float64 `json:"p50_ms"`
	P99 float64 `json:"p99_ms"`
	Max float64 `json:"max_ms"`
}

// quantilesOf sorts its argument. Nearest rank, so that every number is one that was measured.
func quantilesOf(micros []int64) quantiles {
	if len(micros) == 0 {
		return quantiles{}
	}
	slices.Sort(micros)
	at := func(share float64) float64 {
		rank := int(share*float64(len(micros))+0.999999) - 1
		return float64(micros[min(max(rank, 0), len(micros)-1)]) / 1000
	}
	return quantiles{at(0.5), at(0.99), at(1)}
}

// problems counts errors by their text, from many goroutines.
type problems struct {
	mutex  sync.Mutex
	counts map[string]int
}

func (p *problems) add(err error) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if p.counts == nil {
		p.counts = map[string]int{}
	}
	// Addresses and port numbers would make every error one of its own.
	text := err.Error()
	if index := strings.LastIndex(text, ": "); strings.Contains(text, "->") && index >= 0 {
		text = text[index+2:]
	}
	p.counts[text]++
}

func (p *problems) total() int {
	sum := 0
	for _, count := range p.counts {
		sum += count
	}
	return sum
}

// usage is CPU time at one moment: of the measured processes, and of everybody on their core.
type usage struct {
	processNanos int64
	coreTicks    int64
	micros       int64
}

const ticksPerSecond = 100 // USER_HZ; the kernel's interface has it fixed

func measure(pids []int, core int) (usage, error) {
	now := usage{micros: clock.Micros()}
	for _, pid := range pids {
		nanos, err := clock.ProcessNanos(pid)
		if err != nil {
			return now, fmt.Errorf("process %d: %w", pid, err)
		}
		now.processNanos += nanos
	}
	if core < 0 {
		return now, nil
	}
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return now, err
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if fields[0] != fmt.Sprintf("cpu%d", core) {
			continue
		}
		// user nice system idle iowait irq softirq steal; the guest columns are part of user.
		for column, text := range fields[1:9] {
			ticks, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				return now, err
			}
			if column != 3 && column != 4 {
				now.coreTicks += ticks
			}
		}
		return now, nil
	}
	return now, fmt.Errorf("/proc/stat has no core %d", core)
}

// window is what a span of time did to the CPU.
type window struct {
	Seconds    float64 `json:"seconds"`
	CPUSeconds float64 `json:"cpu_s"`
	Background float64 `json:"bg"` // share of the core used by others
}

func between(from, to usage) window {
	w := window{Seconds: float64(to.micros-from.micros) / 1e6, CPUSeconds: float64(to.processNanos-from.processNanos) / 1e9}
	busy := float64(to.coreTicks-from.coreTicks) / ticksPerSecond
	w.Background = max(0, (busy-w.CPUSeconds)/w.Seconds)
	return w
}
