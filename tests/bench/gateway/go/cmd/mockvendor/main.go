// Command mockvendor answers like Anthropic's Messages API (POST /v1/messages) and like OpenAI's Chat Completions API
// (POST /v1/chat/completions), as fast as one core allows. It is made for load, not for truth: it checks nothing of
// a request. tests/mocks has the mock vendors that do.
//
// The name of the model says what to answer, because that passes every gateway: `mock` and any of
//
//	+delay_ms=100   wait before the first byte
//	+events=300     a stream of so many text deltas; each holds its number and its send time as `#12@123456;`
//	                (CLOCK_MONOTONIC in microseconds), so that the reader can tell latency and loss
//	+gap_ms=50      between two of them (one write each; without a gap, all in one write)
//	+fault=500      also 429, 503, 529, reset, error-event, silent
//
// The answer repeats the 16 digits that follow `nonce:` in the request.
package main

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"hearth.test/gatewaybench/internal/clock"
)

const maxBody = 1 << 20

func main() {
	bind := flag.String("bind", "127.0.0.1:0", "address:port; port 0 chooses one")
	flag.Parse()
	// Short-lived garbage only, and pauses would show up as somebody's latency.
	debug.SetGCPercent(800)
	listener, err := net.Listen("tcp", *bind)
	if err != nil {
		log.Fatalf("mockvendor: %v", err)
	}
	fmt.Printf("mockvendor on http://%s\n", listener.Addr())
	if err := os.Stdout.Sync(); err != nil && !strings.Contains(err.Error(), "invalid argument") {
		log.Printf("mockvendor: %v", err) // a pipe cannot be synced, which is not a fault
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			log.Fatalf("mockvendor: %v", err)
		}
		go serve(connection.(*net.TCPConn))
	}
}

// serve answers the requests of one connection, one after the other, until the client leaves.
func serve(connection *net.TCPConn) {
	defer connection.Close()
	reader := bufio.NewReaderSize(connection, 16<<10)
	for {
		request, err := http.ReadRequest(reader)
		if err != nil {
			return // the client has left, or speaks no HTTP: either way there is nobody to answer
		}
		body, err := io.ReadAll(io.LimitReader(request.Body, maxBody))
		if err != nil {
			return
		}
		format, known := formats[request.URL.Path]
		if !known || request.Method != http.MethodPost {
			if _, err := connection.Write(whole(404, []byte(`{"error":{"type":"not_found_error","message":"mock"}}`))); err != nil {
				return
			}
			continue
		}
		if answer(connection, format, body) != nil {
			return
		}
	}
}

// answer writes one response; an error means that the connection is of no further use.
func answer(connection *net.TCPConn, format format, body []byte) error {
	wish, err := parseModel(stringField(body, "model"))
	if err != nil {
		_, err = connection.Write(whole(400, []byte(`{"error":{"type":"invalid_request_error","message":"`+err.Error()+`"}}`)))
		return err
	}
	time.Sleep(wish.delay)
	if wish.fault != "" {
		if done, err := fault(connection, format, wish.fault); done || err != nil {
			return err
		}
	}
	nonce := nonceOf(body)
	if !boolField(body, "stream") {
		_, err := connection.Write(whole(200, format.message(wish.text(nonce))))
		return err
	}
	return stream(connection, format, wish, nonce)
}

const streamHead = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"

func stream(connection *net.TCPConn, format format, wish wish, nonce string) error {
	var out bytes.Buffer
	out.WriteString(streamHead)
	chunk(&out, format.begin())
	if wish.events == 0 {
		for words := range slices.Chunk(strings.SplitAfter(wish.text(nonce), " "), wordsPerDelta) {
			chunk(&out, format.delta(strings.Join(words, "")))
		}
	}
	for number := range wish.events {
		chunk(&out, format.delta(fmt.Sprintf("#%d@%d;", number, clock.Micros())))
		if wish.gap == 0 {
			continue
		}
		if _, err := out.WriteTo(connection); err != nil {
			return err
		}
		time.Sleep(wish.gap)
	}
	chunk(&out, format.end())
	out.WriteString("0\r\n\r\n")
	_, err := out.WriteTo(connection)
	return err
}

// fault misbehaves; false means that a usual answer is to follow.
func fault(connection *net.TCPConn, format format, kind string) (bool, error) {
	switch kind {
	case "429", "500", "503", "529":
		var status int
		if _, err := fmt.Sscan(kind, &status); err != nil {
			return true, err
		}
		_, err := connection.Write(whole(status, []byte(`{"type":"error","error":{"type":"api_error","message":"mock fault"}}`)))
		return true, err
	case "reset":
		if err := connection.SetLinger(0); err != nil {
			return true, err
		}
		return true, io.ErrClosedPipe
	case "error-event":
		var out bytes.Buffer
		out.WriteString(streamHead)
		chunk(&out, format.errorEvent())
		out.WriteString("0\r\n\r\n")
		_, err := out.WriteTo(connection)
		return true, err
	case "silent":
		// Until the client leaves: it sends nothing more, so a read ends only then.
		_, err := connection.Read(make([]byte, 1))
		return true, err
	}
	return false, nil
}

func whole(status int, body []byte) []byte {
	head := fmt.Appendf(nil, "HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n",
		status, http.StatusText(status), len(body))
	return append(head, body...)
}

func chunk(out *bytes.Buffer, data []byte) {
	fmt.Fprintf(out, "%x\r\n%s\r\n", len(data), data)
}
