package broker

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"slices"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/identity"
)

// invitationLife is how long a link to enrol a passkey is good for.
const invitationLife = 24 * time.Hour

// FirstApprover is a person of the ceremony file: with a credential, or with the SHA-256 of the token of a link by
// which the person enrols a passkey, as sha256:HEX.
type FirstApprover struct {
	Name       string
	Credential *approval.Credential
	Invitation string
}

// Derive returns a key of 32 bytes for a purpose, the same one at each start. Everyone can compute it who has a copy of
// the store: it must not authenticate anybody.
func (b *Broker) Derive(purpose string) []byte {
	mac := hmac.New(sha256.New, b.secret)
	mac.Write([]byte("derive:" + purpose))
	return mac.Sum(nil)
}

// Credential returns a credential that is enrolled, and the name of its person. It fails with NotFound.
func (b *Broker) Credential(ctx context.Context, id string) (*approval.Credential, string, error) {
	missing := failure.New(failure.NotFound, "the credential %.80q is not enrolled", id).
		WithHint("see 'hsm-broker approver list'; enrol it with 'hsm-broker approver add'")
	name, exists := "", false
	err := b.look(ctx, func(d *decision) {
		if c := d.Credentials[id]; c != nil {
			name, exists = b.inForce.Load().names[c.Person]
		}
	})
	if err != nil {
		return nil, "", err
	}
	if !exists {
		return nil, "", missing
	}
	c, err := b.credential(ctx, id)
	return c, name, err
}

// credential reads the document of a credential.
func (b *Broker) credential(ctx context.Context, id string) (*approval.Credential, error) {
	data, err := b.Document(ctx, id)
	if err != nil {
		return nil, err
	}
	return approval.DecodeCredential(data)
}

// Document returns a document by its SHA-256 as sha256:HEX. It fails with NotFound, and with Internal for one that is
// not what its name says.
func (b *Broker) Document(ctx context.Context, hash string) ([]byte, error) {
	digest, err := parseHash(hash)
	if err != nil {
		return nil, failure.New(failure.NotFound, "there is no document %.80q", hash)
	}
	data, err := b.options.Store.Document(ctx, digest)
	if err != nil {
		return nil, err
	}
	if sha256.Sum256(data) != digest {
		return nil, failure.New(failure.Internal, "the document %s in the store is not the one of the log", hash).
			WithHint("restore the database from a backup")
	}
	return data, nil
}

// CredentialsOf returns the credentials of a person by their names.
func (b *Broker) CredentialsOf(ctx context.Context, person string) (map[string]*approval.Credential, error) {
	var ids []string
	err := b.look(ctx, func(d *decision) {
		for id, c := range d.Credentials {
			if c.Person == b.personID(person) {
				ids = append(ids, id)
			}
		}
	})
	all := map[string]*approval.Credential{}
	for _, id := range ids {
		if err == nil {
			all[id], err = b.credential(ctx, id)
		}
	}
	return all, err
}

// Approvers returns the people of the policy in force by name, after a name, with their credentials.
func (b *Broker) Approvers(ctx context.Context, after string, limit int) (*brokerapi.Approvers, error) {
	in := b.inForce.Load()
	page := &brokerapi.Approvers{Approvers: []brokerapi.Approver{}}
	var names []string
	for name := range in.inGroups {
		if name > after {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	if len(names) > limit {
		names, page.After = names[:limit], names[limit-1]
	}
	of := map[string][]brokerapi.Credential{}
	err := b.look(ctx, func(d *decision) {
		for id, c := range d.Credentials {
			of[c.Person] = append(of[c.Person], brokerapi.Credential{ID: id, Kind: string(c.Kind), Enrolled: c.Enrolled,
				Attested: c.Attested, DeviceBound: c.Device})
		}
	})
	for _, name := range names {
		id := b.personID(name)
		a := brokerapi.Approver{Name: name, ID: id, Groups: in.inGroups[name], Credentials: of[id]}
		if a.Credentials == nil {
			a.Credentials = []brokerapi.Credential{}
		}
		for i := range a.Credentials {
			if err == nil {
				a.Credentials[i].Label, err = b.label(ctx, a.Credentials[i].ID)
			}
		}
		slices.SortFunc(a.Credentials, func(x, y brokerapi.Credential) int { return x.Enrolled.Compare(y.Enrolled) })
		page.Approvers = append(page.Approvers, a)
	}
	return page, err
}

// Export returns the people whose credentials are enrolled by name, after a name, with the documents of these. With
// removed, it has the credentials as well that were removed. The name of somebody whom the policy in force does not
// have is the id.
func (b *Broker) Export(ctx context.Context, after string, limit int, removed bool) (*brokerapi.Export, error) {
	names, of := b.inForce.Load().names, map[string][]string{} // credentials by id of the person
	err := b.look(ctx, func(d *decision) {
		for id, c := range d.Credentials {
			of[c.Person] = append(of[c.Person], id)
		}
		for id, person := range d.Removed {
			if removed {
				of[person] = append(of[person], id)
			}
		}
	})
	if err != nil {
		return nil, err
	}
	page := &brokerapi.Export{Approvers: []brokerapi.Exported{}}
	for id := range of {
		if name := cmp.Or(names[id], id); name > after {
			page.Approvers = append(page.Approvers, brokerapi.Exported{Name: name, ID: id, Credentials: [][]byte{}})
		}
	}
	slices.SortFunc(page.Approvers, func(x, y brokerapi.Exported) int { return strings.Compare(x.Name, y.Name) })
	if len(page.Approvers) > limit {
		page.Approvers, page.After = page.Approvers[:limit], page.Approvers[limit-1].Name
	}
	for i := range page.Approvers {
		p := &page.Approvers[i]
		for _, hash := range slices.Sorted(slices.Values(of[p.ID])) {
			document, err := b.Document(ctx, hash)
			if err != nil {
				return nil, err
			}
			p.Credentials = append(p.Credentials, document)
		}
	}
	return page, nil
}

// label returns the fingerprint of a credential, whose document is read once.
func (b *Broker) label(ctx context.Context, id string) (string, error) {
	if known, exists := b.labels.Load(id); exists {
		return known.(string), nil
	}
	c, err := b.credential(ctx, id)
	if err != nil {
		return "", err
	}
	b.labels.Store(id, c.Fingerprint())
	return c.Fingerprint(), nil
}

// Enrol proposes a credential of a person, under the top-level rules for modify. With the invitation of a first
// approver, it counts when it returns. The caller has verified that the person has the private key. It sets the id of
// the person and a salt.
func (b *Broker) Enrol(ctx context.Context, caller identity.Caller, person string, c approval.Credential,
	token string) (*brokerapi.Request, error) {
	c.Approver, c.Salt = b.personID(person), randomHex()
	if c.Kind == approval.Passkey && token == "" {
		return nil, failure.New(failure.Denied, "a passkey is enrolled by an invitation alone").
			WithHint("have an administrator invite the person: 'hsm-broker approver invite NAME'")
	}
	document, err := c.Encode()
	if err != nil {
		return nil, err
	}
	change := Change{What: ChangeEnrol, Person: person, credential: &c, document: document}
	if token != "" {
		change.invitation = hashOf([]byte(token))
	}
	return b.Propose(ctx, caller, change)
}

// enrolment checks a credential that is proposed, and fills in its event. It returns true if it needs no approvals.
func (d *decision) enrolment(c *Change, e *Event) (bool, error) {
	in := d.b.inForce.Load()
	id := d.b.personID(c.Person)
	if in.names[id] == "" {
		return false, failure.New(failure.NotFound, "the policy has no person %.100q", c.Person).
			WithHint("add the person to a group of the policy first")
	}
	e.Approver, e.Credential = id, approval.Hash(c.document)
	e.Kind, e.Public = string(c.credential.Kind), d.b.pseudonym("public", string(c.credential.Public))
	if p := c.credential.Passkey; p != nil {
		e.Attested, e.Device = p.Attested, !p.BackupEligible
	}
	if d.known(e.Public) {
		return false, failure.New(failure.Conflict, "the key of the credential is enrolled already").
			WithHint("use another key: a key belongs to one person")
	}
	if c.invitation == "" {
		return false, nil
	}
	i := d.Invitations[c.invitation]
	if i == nil || i.Person != id || d.now.Unix() >= i.Ends {
		return false, noInvitation()
	}
	e.Invitation = c.invitation
	return i.First, nil
}

// known reports whether a credential with a public key is enrolled.
func (s *state) known(public string) bool {
	for _, c := range s.Credentials {
		if c.Public == public {
			return true
		}
	}
	return false
}

func noInvitation() error {
	return failure.New(failure.NotFound, "the invitation was used, or it is too old").
		WithHint("have an administrator invite you again: 'hsm-broker approver invite NAME'")
}

// Invite lets a person enrol a passkey with the returned token, once. Administrators and people of the policy may
// invite: the credential counts after others have approved it.
func (b *Broker) Invite(ctx context.Context, caller identity.Caller, person string) (token string, expires time.Time,
	err error) {
	if !caller.Admin && b.Person(caller) == "" {
		return "", time.Time{}, failure.New(failure.Denied, "only administrators and approvers invite people").
			WithHint("ask one of them")
	}
	token = rand.Text()
	index := int64(-1)
	err = b.do(ctx, func(d *decision) error {
		id := b.personID(person)
		if b.inForce.Load().names[id] == "" {
			return failure.New(failure.NotFound, "the policy has no person %.100q", person).
				WithHint("add the person to a group of the policy first")
		}
		if len(d.Invitations) >= maxInvitations {
			return failure.New(failure.Throttled, "there are %d invitations that nobody has used", len(d.Invitations)).
				WithHint("wait until some have expired")
		}
		index, expires = d.Size, d.now.Add(invitationLife).Truncate(time.Second)
		return d.event(Event{Type: invited, Approver: id, Caller: b.callerOf(caller), Invitation: hashOf([]byte(token)),
			NotAfter: expires.Unix()})
	})
	if err == nil {
		err = b.covered(ctx, index)
	}
	return token, expires, err
}

// maxInvitations bounds what the state remembers.
const maxInvitations = 10_000

// Invitation returns the name of the person whom a token invites. It fails with NotFound.
func (b *Broker) Invitation(ctx context.Context, token string) (person string, err error) {
	err = b.look(ctx, func(d *decision) {
		if i := d.Invitations[hashOf([]byte(token))]; i != nil && d.now.Unix() < i.Ends {
			person = b.inForce.Load().names[i.Person]
		}
	})
	if err == nil && person == "" {
		err = noInvitation()
	}
	return person, err
}

// first enrols the first approvers, when the log begins.
func (d *decision) first(people []FirstApprover, named func(string) bool) error {
	for _, p := range people {
		if !named(p.Name) {
			return failure.New(failure.Invalid, "the first approver %q is not in the policy", p.Name).
				WithHint("add the person to a group of the policy, or remove it from the file with the first approvers")
		}
		e := Event{Type: invited, Approver: d.b.personID(p.Name), Invitation: p.Invitation, State: string(brokerapi.Approved),
			NotAfter: d.now.Add(firstLife).Unix()}
		if p.Credential != nil {
			c := *p.Credential
			c.Approver, c.Salt = e.Approver, randomHex()
			document, err := c.Encode()
			if err != nil {
				return err
			}
			d.document(document)
			e = Event{Type: enrolled, Approver: c.Approver, Credential: approval.Hash(document), Kind: string(c.Kind),
				Public: d.b.pseudonym("public", string(c.Public))}
			if d.known(e.Public) {
				return failure.New(failure.Invalid, "two first approvers have the same key").
					WithHint("give each a key of their own")
			}
		}
		if err := d.event(e); err != nil {
			return err
		}
	}
	return nil
}

// firstLife is how long the links of first approvers are good for.
const firstLife = 7 * 24 * time.Hour
