package notice

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"

	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

// Rows returns the rows of the store that tell of an event: one for each channel and recipient. The same event has the
// same rows. It reads and writes nothing, as the broker waits for it.
//
// Webhooks and chats get every event that they list. Mail goes to those who can act while a request waits, to the
// requester when it is decided, and to all contacts in an emergency.
func (n *Notices) Rows(event broker.Notice) (rows []store.Notice) {
	var body []byte
	var people []string
	for _, c := range n.channels {
		if !c.tells(event.Type) {
			continue
		}
		recipients := []string{""}
		if c.people {
			if people == nil {
				people = n.recipients(&event)
			}
			recipients = people
		}
		for _, recipient := range recipients {
			if body == nil {
				body = n.messageOf(&event).encode()
			}
			rows = append(rows, store.Notice{ID: rowID(event.ID, c.name, recipient), Channel: c.name, Recipient: recipient,
				Created: event.Time, Due: event.Time, Body: body})
		}
		n.metrics.queued.WithLabelValues(c.name).Add(float64(len(recipients)))
	}
	return rows
}

// recipients returns the names of the people who are told of an event and have a contact, in their order.
func (n *Notices) recipients(event *broker.Notice) []string {
	var people []string
	switch {
	case event.Everyone:
		return slices.Sorted(maps.Keys(n.contacts))
	case waits(event.Type):
		people = slices.Clone(event.People)
	default:
		people = []string{event.Requester}
	}
	people = slices.DeleteFunc(people, func(name string) bool { return n.contacts[name] == "" })
	slices.Sort(people)
	return slices.Compact(people)
}

// rowID returns the ID of a row: the same for the same event, channel and recipient, and safe in headers.
func rowID(event, channel, recipient string) string {
	hash := sha256.Sum256(fmt.Appendf(nil, "%q %q %q", event, channel, recipient))
	return "msg_" + hex.EncodeToString(hash[:16])
}
