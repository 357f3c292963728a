package notice

import (
	"context"
	"errors"

	"github.com/notation-hsm/notation-hsm/internal/ownership"
	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/webhook"
)

// webhookSender posts messages as they are, signed as Standard Webhooks says.
type webhookSender struct {
	receiver *webhook.Receiver
	agent    string
}

func newWebhook(c Channel, o Options) (*webhookSender, []mistake) {
	if c.Secret == "" {
		return nil, []mistake{{".secret", "name the file of the secret that signs requests", errors.New("is missing")}}
	}
	if _, err := ownership.ReadSecret(c.Secret); err != nil {
		return nil, []mistake{mistakeOf(".secret", err)}
	}
	receiver, err := webhook.New(c.Webhook, c.Secret, c.CA)
	if err != nil {
		return nil, []mistake{mistakeOf(".webhook", err)}
	}
	return &webhookSender{receiver, agentOf(o)}, nil
}

func (w *webhookSender) send(ctx context.Context, n *store.Notice) error {
	return w.receiver.Send(ctx, webhook.Message{ID: n.ID, Media: "application/json", Agent: w.agent, Body: n.Body})
}

// agentOf returns the header User-Agent of requests.
func agentOf(o Options) string { return "hsm-broker/" + o.Version }
