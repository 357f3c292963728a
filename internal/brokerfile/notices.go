package brokerfile

import (
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/notice"
)

// Told returns who is told of requests, and how.
func (f *File) Told() notice.Config { return notice.Config{Channels: f.Notices, Contacts: f.Contacts} }

// checkNotices returns the mistakes of who is told of requests.
func (f *File) checkNotices() (all Mistakes) {
	contacts := child(f.root, "contacts")
	for _, err := range f.Told().Check() {
		m := f.locate(err)
		if rest, ok := strings.CutPrefix(m.What, "contacts."); ok && contacts != nil { // a name may have dots
			name, _, _ := strings.Cut(rest, ": ")
			if node := child(contacts, name); node != nil {
				m.Line = node.Line
			}
		}
		all = append(all, m)
	}
	return all
}
