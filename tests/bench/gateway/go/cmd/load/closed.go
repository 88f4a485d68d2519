package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"hearth.test/gatewaybench/internal/clock"
)

const answerTimeout = 60 * time.Second

// peopleStride is prime, so that the connections go through the people at different places.
const peopleStride = 157

type closedResult struct {
	window
	quantiles
	Requests int            `json:"requests"`
	Errors   int            `json:"errors"`
	Kinds    map[string]int `json:"error_kinds,omitempty"`
	RPS      float64        `json:"rps"`
	Bytes    int            `json:"answer_bytes"`
}

// user sends one request after the other over a connection that is kept.
type user struct {
	options    options
	template   template
	connection net.Conn
	reader     *bufio.Reader
	bytes      int
	micros     []int64 // of answers within the window
}

// closed loads the gateway for the warm-up and the window, or until `requests` answers.
func closed(o options, connections int, length time.Duration, requests int) (closedResult, error) {
	shared := newTemplate(o, false)
	var faults problems
	var group sync.WaitGroup
	if requests > 0 {
		o.warmup = 0 // all of them count
	}
	begin := time.Now()
	windowStart, windowEnd := begin.Add(o.warmup), begin.Add(o.warmup+length)
	users := make([]*user, connections)
	for index := range users {
		users[index] = &user{options: o, template: shared.copy()}
		group.Go(func() { users[index].run(index, windowStart, windowEnd, requests, &faults) })
	}
	time.Sleep(o.warmup)
	from, err := measure(o.pids, o.core)
	if err != nil {
		return closedResult{}, err
	}
	finished := make(chan struct{})
	go func() { group.Wait(); close(finished) }()
	if requests == 0 {
		time.Sleep(length)
	} else {
		<-finished
	}
	to, err := measure(o.pids, o.core)
	if err != nil {
		return closedResult{}, err
	}
	<-finished
	result := closedResult{window: between(from, to), Errors: faults.total(), Kinds: faults.counts}
	var all []int64
	for _, user := range users {
		all = append(all, user.micros...)
		result.Bytes = max(result.Bytes, user.bytes)
	}
	result.Requests = len(all)
	result.RPS = float64(len(all)) / result.Seconds
	result.quantiles = quantilesOf(all)
	return result, nil
}

func (u *user) run(index int, windowStart, windowEnd time.Time, requests int, faults *problems) {
	defer u.hangUp()
	for number := 0; requests == 0 || number < requests; number++ {
		if requests == 0 && !time.Now().Before(windowEnd) {
			return
		}
		nonce := fmt.Sprintf("%06d%010d", index, number)
		start := clock.Micros()
		if err := u.ask(nonce, index*peopleStride+number); err != nil {
			if requests > 0 || time.Now().After(windowStart) {
				faults.add(err)
			}
			u.hangUp()
			time.Sleep(10 * time.Millisecond) // a gateway that refuses everything must not look like a busy one
			continue
		}
		took := clock.Micros() - start
		// An answer counts when it ends within the window, as the CPU time does.
		if now := time.Now(); requests > 0 || (now.After(windowStart) && now.Before(windowEnd)) {
			u.micros = append(u.micros, took)
		}
	}
}

func (u *user) ask(nonce string, turn int) error {
	if u.connection == nil {
		connection, err := net.Dial("tcp", u.options.address)
		if err != nil {
			return err
		}
		u.connection, u.reader = connection, bufio.NewReaderSize(connection, 16<<10)
	}
	if err := u.connection.SetDeadline(time.Now().Add(answerTimeout)); err != nil {
		return err
	}
	if _, err := u.connection.Write(u.template.fill(nonce, turn%max(1, u.options.people))); err != nil {
		return err
	}
	response, err := http.ReadResponse(u.reader, nil)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", response.StatusCode)
	}
	u.bytes = len(body)
	if err := verify(body, nonce); err != nil {
		return err
	}
	if response.Close {
		u.hangUp()
	}
	return nil
}

func (u *user) hangUp() {
	if u.connection != nil {
		u.connection.Close()
		u.connection = nil
	}
}
