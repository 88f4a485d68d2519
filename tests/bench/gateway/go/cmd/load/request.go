package main

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Must be those of cmd/mockvendor.
const (
	promptTokens = 1037
	answerTokens = 213
	filler       = "The quick answer of a mock vendor has about as many bytes as a short real one, so that copying " +
		"and parsing it costs what it would cost in earnest. It holds nothing that anybody has to escape."
)

var prompt = strings.Repeat("Please say in a few words why a proxy between people and a model should be quick. ", 9)

// template is a request with a hole of 16 digits, and one of 4 for the number of a person, so that making one costs
// next to nothing.
type template struct {
	bytes  []byte
	hole   int
	person int // -1 without people
}

const personHeader = "x-hearth-end-user: person-"

func newTemplate(o options, stream bool) template {
	const digits = "0000000000000000"
	body := fmt.Sprintf(`{"model":%q,"messages":[{"role":"system","content":"You are a friendly and brief assistant."},`+
		`{"role":"user","content":"nonce:%s %s"}],"max_tokens":300,"temperature":0.7`, o.model, digits, prompt)
	if stream {
		body += `,"stream":true`
	}
	body += "}"
	head := fmt.Sprintf("POST %s HTTP/1.1\r\nhost: %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n",
		o.path, o.host, len(body))
	for _, line := range o.headers {
		head += line + "\r\n"
	}
	if o.people > 0 {
		head += personHeader + "0000@example.org\r\n"
	}
	whole := head + "\r\n" + body
	result := template{[]byte(whole), strings.Index(whole, "nonce:"+digits) + len("nonce:"), -1}
	if o.people > 0 {
		result.person = strings.Index(whole, personHeader) + len(personHeader)
	}
	return result
}

// copy is for one connection: filling a template changes it.
func (t template) copy() template { return template{append([]byte(nil), t.bytes...), t.hole, t.person} }

// fill makes the request with this nonce, from the person with this number.
func (t template) fill(nonce string, person int) []byte {
	copy(t.bytes[t.hole:], nonce)
	if t.person >= 0 {
		copy(t.bytes[t.person:], fmt.Sprintf("%04d", person))
	}
	return t.bytes
}

func expected(nonce string) string { return nonce + " " + filler }

// verify says what is wrong with a whole answer, in OpenAI's format or in Anthropic's.
func verify(body []byte, nonce string) error {
	var answer struct {
		Choices []struct {
			Message struct{ Content string }
			Finish  string `json:"finish_reason"`
		}
		Content []struct{ Text string }
		Usage   struct {
			Prompt     int `json:"prompt_tokens"`
			Completion int `json:"completion_tokens"`
			Input      int `json:"input_tokens"`
			Output     int `json:"output_tokens"`
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return fmt.Errorf("the body is not JSON: %w", err)
	}
	text := ""
	switch {
	case len(answer.Choices) == 1 && answer.Choices[0].Finish == "stop":
		text = answer.Choices[0].Message.Content
	case len(answer.Content) == 1:
		text = answer.Content[0].Text
	}
	if text != expected(nonce) {
		return fmt.Errorf("the text is not the one that belongs to the request")
	}
	if answer.Usage.Prompt+answer.Usage.Input != promptTokens || answer.Usage.Completion+answer.Usage.Output != answerTokens {
		return fmt.Errorf("the usage is wrong")
	}
	return nil
}
