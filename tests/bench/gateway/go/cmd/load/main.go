// Command load asks a gateway for chat completions and measures how long they take. It prints one JSON object.
//
//	load closed  -c 16 -seconds 2     so many connections, each sends its next request when the last is answered
//	load streams -n 500 -events 300   so many streams at a time, each over a connection of its own
//
// Every answer is checked: what is wrong counts as an error and never as throughput. With -pid and -core it also
// reports the CPU time of those processes in the window, and the share of the core that others used.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net/url"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
)

// options are what both kinds of load need.
type options struct {
	address string // host:port
	path    string
	host    string
	model   string
	headers headerList
	pids    pidList
	core    int
	people  int
	warmup  time.Duration
}

type headerList []string

func (h *headerList) String() string { return fmt.Sprint(*h) }

func (h *headerList) Set(line string) error {
	if !strings.Contains(line, ": ") {
		return fmt.Errorf("%q is not `name: value`", line)
	}
	*h = append(*h, line)
	return nil
}

type pidList []int

func (p *pidList) String() string { return fmt.Sprint(*p) }

func (p *pidList) Set(text string) error {
	pid, err := strconv.Atoi(text)
	*p = append(*p, pid)
	return err
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("load: ")
	debug.SetGCPercent(800)
	if len(os.Args) < 2 {
		log.Fatal("say closed or streams")
	}
	var o options
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	target := flags.String("url", "", "the whole address, with path")
	flags.StringVar(&o.model, "model", "mock", "name of the model to ask for")
	flags.Var(&o.headers, "header", "`name: value`; repeatable")
	flags.Var(&o.pids, "pid", "process to measure; repeatable")
	flags.IntVar(&o.core, "core", -1, "core those processes are pinned to")
	flags.IntVar(&o.people, "people", 0, "speak for so many people in turn, at most 9999 (header x-hearth-end-user)")
	warmup := flags.Float64("warmup", 0.5, "seconds of load before the window; of closed only")
	connections := flags.Int("c", 1, "closed: connections")
	seconds := flags.Float64("seconds", 2, "closed: length of the window")
	requests := flags.Int("requests", 0, "closed: stop after so many, 0 = when the time is over")
	streams := flags.Int("n", 100, "streams: how many at a time")
	events := flags.Int("events", 300, "streams: text deltas each one must bring")
	ramp := flags.Float64("ramp", 5, "streams: seconds over which they start")
	if err := flags.Parse(os.Args[2:]); err != nil {
		log.Fatal(err)
	}
	parsed, err := url.Parse(*target)
	if err != nil || parsed.Host == "" {
		log.Fatalf("-url %q is no address", *target)
	}
	o.address, o.host, o.path = parsed.Host, parsed.Host, parsed.Path
	o.warmup = time.Duration(*warmup * float64(time.Second))

	var result any
	switch os.Args[1] {
	case "closed":
		result, err = closed(o, *connections, time.Duration(*seconds*float64(time.Second)), *requests)
	case "streams":
		result, err = hold(o, *streams, *events, time.Duration(*ramp*float64(time.Second)))
	default:
		log.Fatalf("%q is neither closed nor streams", os.Args[1])
	}
	if err != nil {
		log.Fatal(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
		log.Fatal(err)
	}
}
