package feed

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	webhooks "github.com/notation-hsm/notation-hsm/internal/webhook"
)

// webhook posts a batch of entries in each request, signed as Standard Webhooks says.
type webhook struct {
	receiver *webhooks.Receiver
	format   formatter
}

func newWebhook(c Config, f formatter) (*webhook, error) {
	receiver, err := webhooks.New(c.Webhook, c.Secret, c.CA)
	return &webhook{receiver: receiver, format: f}, err
}

// body returns the body of a request and its media type.
func (w *webhook) body(records []record) (body []byte, media string, err error) {
	if w.format.cef {
		for _, r := range records {
			body = append(append(body, w.format.line(r)...), '\n')
		}
		return body, "text/plain; charset=utf-8", nil
	}
	type data struct {
		Log     string            `json:"log"`
		First   int64             `json:"first"` // index of the first entry
		Entries []json.RawMessage `json:"entries"`
	}
	d := data{Log: w.format.log, First: records[0].index}
	for _, r := range records {
		d.Entries = append(d.Entries, json.RawMessage(r.entry))
	}
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false) // entries keep their bytes
	err = encoder.Encode(struct {
		Type      string    `json:"type"`
		Timestamp time.Time `json:"timestamp"` // of the first entry
		Data      data      `json:"data"`
	}{"log.entries", eventOf(records[0].entry).Time, d})
	return buffer.Bytes(), "application/json", err
}

func (w *webhook) send(ctx context.Context, records []record) error {
	body, media, err := w.body(records)
	if err != nil {
		return failure.New(failure.Invalid, "cannot encode entries for the webhook: %w", err)
	}
	hash := sha256.Sum256(body)
	id := "msg_" + hex.EncodeToString(hash[:16]) // the same when the same is sent again
	return w.receiver.Send(ctx, webhooks.Message{ID: id, Media: media, Agent: "hsm-broker/" + w.format.version,
		Body: body})
}
