package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"hearth.test/gatewaybench/internal/clock"
)

type streamsResult struct {
	window
	Chunk    quantiles      `json:"chunk"`       // from the vendor's send to our receive
	First    quantiles      `json:"first_token"` // from our request to the first delta
	Streams  int            `json:"streams"`
	Complete int            `json:"complete"`
	Chunks   int            `json:"chunks"`
	Lost     int            `json:"lost_chunks"`
	Peak     int            `json:"peak_open"`
	Kinds    map[string]int `json:"error_kinds,omitempty"`
}

// deltas finds the vendor's marks `#12@123456;` in a body of whatever format, however it is cut.
type deltas struct {
	rest    []byte // what may be the beginning of a mark
	next    int    // number of the next delta
	lost    int
	latency []int64
}

func (d *deltas) feed(data []byte, now int64) error {
	if len(d.rest) > 0 {
		data = append(d.rest, data...)
	}
	for {
		start := bytes.IndexByte(data, '#')
		if start < 0 {
			d.rest = nil
			return nil
		}
		mark, after, whole := bytes.Cut(data[start:], []byte(";"))
		if !whole {
			d.rest = append([]byte(nil), mark...)
			return nil
		}
		var number int
		var sent int64
		if _, err := fmt.Sscanf(string(mark), "#%d@%d", &number, &sent); err != nil {
			return fmt.Errorf("a delta was changed on its way")
		}
		if number < d.next {
			return fmt.Errorf("a delta came twice or out of order")
		}
		d.lost += number - d.next
		d.next = number + 1
		d.latency = append(d.latency, now-sent)
		data = after
	}
}

// hold opens n streams within `ramp` and reads each to its end.
func hold(o options, n, events int, ramp time.Duration) (streamsResult, error) {
	shared := newTemplate(o, true)
	result := streamsResult{Streams: n}
	var faults problems
	var mutex sync.Mutex
	var chunks, first []int64
	open := 0
	from, err := measure(o.pids, o.core)
	if err != nil {
		return result, err
	}
	var group sync.WaitGroup
	for index := range n {
		time.Sleep(ramp / time.Duration(n))
		group.Go(func() {
			mutex.Lock()
			open++
			result.Peak = max(result.Peak, open)
			mutex.Unlock()
			found, firstMicros, err := read(o, shared.copy().fill(fmt.Sprintf("%016d", index), index%max(1, o.people)), events)
			mutex.Lock()
			defer mutex.Unlock()
			open--
			chunks = append(chunks, found.latency...)
			result.Lost += events - len(found.latency)
			if firstMicros > 0 {
				first = append(first, firstMicros)
			}
			if err != nil {
				faults.add(err)
				return
			}
			result.Complete++
		})
	}
	group.Wait()
	to, err := measure(o.pids, o.core)
	if err != nil {
		return result, err
	}
	result.window = between(from, to)
	result.Chunks = len(chunks)
	result.Kinds = faults.counts
	result.Chunk, result.First = quantilesOf(chunks), quantilesOf(first)
	return result, nil
}

// read is one stream: its deltas, the time to the first of them, and what was wrong.
func read(o options, request []byte, events int) (deltas, int64, error) {
	found := deltas{latency: make([]int64, 0, events)}
	connection, err := net.Dial("tcp", o.address)
	if err != nil {
		return found, 0, err
	}
	defer connection.Close()
	start, firstMicros := clock.Micros(), int64(0)
	if _, err := connection.Write(request); err != nil {
		return found, 0, err
	}
	reader := bufio.NewReaderSize(connection, 4<<10)
	if err := connection.SetReadDeadline(time.Now().Add(answerTimeout)); err != nil {
		return found, 0, err
	}
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		return found, 0, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return found, 0, fmt.Errorf("status %d", response.StatusCode)
	}
	piece, tail := make([]byte, 4<<10), []byte(nil)
	for {
		if err := connection.SetReadDeadline(time.Now().Add(answerTimeout)); err != nil {
			return found, firstMicros, err
		}
		size, err := response.Body.Read(piece)
		now := clock.Micros()
		if fault := found.feed(piece[:size], now); fault != nil {
			return found, firstMicros, fault
		}
		if firstMicros == 0 && found.next > 0 {
			firstMicros = now - start
		}
		tail = append(tail, piece[:size]...)
		tail = tail[max(0, len(tail)-64):]
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return found, firstMicros, err
		}
	}
	if found.lost > 0 || found.next != events {
		return found, firstMicros, fmt.Errorf("deltas are missing")
	}
	if !bytes.Contains(tail, []byte("data: [DONE]")) && !bytes.Contains(tail, []byte(`"message_stop"`)) {
		return found, firstMicros, fmt.Errorf("the stream has no proper end")
	}
	return found, firstMicros, nil
}
