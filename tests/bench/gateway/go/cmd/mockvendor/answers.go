package main

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// What the driver expects to find in every answer.
const (
	promptTokens = 1037
	answerTokens = 213
)

// wordsPerDelta is how an answer is cut when it is asked for as a stream without a number of events: about 16
// characters a delta, as vendors do.
const wordsPerDelta = 3

// filler makes a whole answer about 650 bytes of JSON, and thirteen deltas when it is streamed.
const filler = "The quick answer of a mock vendor has about as many bytes as a short real one, so that copying " +
	"and parsing it costs what it would cost in earnest. It holds nothing that anybody has to escape."

// wish is what the name of a model asks for.
type wish struct {
	delay, gap time.Duration
	events     int
	fault      string
}

func (w wish) text(nonce string) string { return nonce + " " + filler }

func parseModel(name string) (wish, error) {
	var w wish
	parts := strings.Split(name, "+")
	for _, part := range parts[1:] {
		key, value, _ := strings.Cut(part, "=")
		if key == "fault" {
			w.fault = value
			continue
		}
		if key == "key" {
			continue // only makes the name another one: a gateway keeps a breaker for each model
		}
		number, err := strconv.Atoi(value)
		if err != nil {
			return w, fmt.Errorf("model: %s is no number", key)
		}
		switch key {
		case "delay_ms":
			w.delay = time.Duration(number) * time.Millisecond
		case "gap_ms":
			w.gap = time.Duration(number) * time.Millisecond
		case "events":
			w.events = number
		default:
			return w, fmt.Errorf("model: %s is unknown", key)
		}
	}
	return w, nil
}

// A full JSON parser would cost more than the rest of the mock; the load driver's prompts hold no such keys.
func valueOf(body []byte, key string) []byte {
	_, rest, found := bytes.Cut(body, []byte(`"`+key+`"`))
	if !found {
		return nil
	}
	return bytes.TrimLeft(rest, ": ")
}

func stringField(body []byte, key string) string {
	rest, found := bytes.CutPrefix(valueOf(body, key), []byte(`"`))
	if !found {
		return ""
	}
	value, _, _ := bytes.Cut(rest, []byte(`"`))
	return string(value)
}

func boolField(body []byte, key string) bool {
	return bytes.HasPrefix(valueOf(body, key), []byte("true"))
}

func nonceOf(body []byte) string {
	_, rest, found := bytes.Cut(body, []byte("nonce:"))
	if !found || len(rest) < 16 {
		return "no-nonce"
	}
	return string(rest[:16])
}

// format is one vendor's way to say things. Deltas are valid JSON only for texts that need no escaping.
type format interface {
	message(text string) []byte
	begin() []byte
	delta(text string) []byte
	end() []byte
	errorEvent() []byte
}

var formats = map[string]format{"/v1/messages": anthropic{}, "/v1/chat/completions": openai{}}

type anthropic struct{}

func (anthropic) message(text string) []byte {
	return fmt.Appendf(nil, `{"id":"msg_01Hearth0Bench0Mock0Vendor","type":"message","role":"assistant","model":"mock",`+
		`"content":[{"type":"text","text":"%s"}],"stop_reason":"end_turn","stop_sequence":null,`+
		`"usage":{"input_tokens":%d,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,`+
		`"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"output_tokens":%d,"service_tier":"standard"}}`,
		text, promptTokens, answerTokens)
}

func (anthropic) begin() []byte {
	return fmt.Appendf(nil, "event: message_start\n"+`data: {"type":"message_start","message":{"id":"msg_01Hearth0Bench0Mock0Vendor",`+
		`"type":"message","role":"assistant","model":"mock","content":[],"stop_reason":null,"stop_sequence":null,`+
		`"usage":{"input_tokens":%d,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":1}}}`+"\n\n"+
		"event: content_block_start\n"+`data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`+"\n\n"+
		"event: ping\n"+`data: {"type":"ping"}`+"\n\n", promptTokens)
}

func (anthropic) delta(text string) []byte {
	return []byte("event: content_block_delta\n" +
		`data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"` + text + `"}}` + "\n\n")
}

func (anthropic) end() []byte {
	return fmt.Appendf(nil, "event: content_block_stop\n"+`data: {"type":"content_block_stop","index":0}`+"\n\n"+
		"event: message_delta\n"+`data: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},`+
		`"usage":{"output_tokens":%d}}`+"\n\n"+"event: message_stop\n"+`data: {"type":"message_stop"}`+"\n\n", answerTokens)
}

func (anthropic) errorEvent() []byte {
	return []byte("event: error\n" + `data: {"type":"error","error":{"type":"overloaded_error","message":"mock fault"}}` + "\n\n")
}

type openai struct{}

const openaiChunk = `data: {"id":"chatcmpl-hearth-bench-mock","object":"chat.completion.chunk","created":1700000000,"model":"mock",`

func usage() string {
	return fmt.Sprintf(`"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,`+
		`"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0}}`, promptTokens, answerTokens, promptTokens+answerTokens)
}

func (openai) message(text string) []byte {
	return fmt.Appendf(nil, `{"id":"chatcmpl-hearth-bench-mock","object":"chat.completion","created":1700000000,"model":"mock",`+
		`"choices":[{"index":0,"message":{"role":"assistant","content":"%s","refusal":null,"annotations":[]},"logprobs":null,`+
		`"finish_reason":"stop"}],%s,"service_tier":"default","system_fingerprint":null}`, text, usage())
}

func (openai) begin() []byte {
	return []byte(openaiChunk + `"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}` + "\n\n")
}

func (openai) delta(text string) []byte {
	return []byte(openaiChunk + `"choices":[{"index":0,"delta":{"content":"` + text + `"},"finish_reason":null}]}` + "\n\n")
}

func (openai) end() []byte {
	return []byte(openaiChunk + `"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}` + "\n\n" +
		openaiChunk + `"choices":[],` + usage() + "}\n\ndata: [DONE]\n\n")
}

func (openai) errorEvent() []byte {
	return []byte(`data: {"error":{"type":"server_error","message":"mock fault","code":500}}` + "\n\n")
}
