package broker

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/policy"
	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// Reasons for which a broker signs nothing.
const (
	older     = "its database is older than the checkpoint outside of it"
	forked    = "its database is not the one of the checkpoint outside of it"
	noFile    = "the checkpoint outside of the database is missing"
	future    = "the times of its newest entries, which no checkpoint covers, have not come: set the clock right"
	newConfig = "the config file is not the one in force: propose it with 'hsm-broker config apply'"
	badPolicy = "the policy in force cannot be read"
	maxFile   = 64 << 10 // bytes of a checkpoint
	entryPage = 4096     // entries that are verified at once
)

// start reads the state from the store, and says why nothing may be signed if that is so.
func (b *Broker) start(ctx context.Context) error {
	size, err := b.options.Store.Size(ctx)
	if err != nil {
		return err
	}
	if size == 0 {
		if err := b.begin(); err != nil && !b.overtaken(err) {
			return err
		}
		if size, err = b.options.Store.Size(ctx); err != nil {
			return err
		}
	}
	if size == int64(1+len(b.options.First)) {
		if err := b.signFirst(ctx); err != nil && !b.overtaken(err) { // also after a start that ended before it did
			return err
		}
	}
	trusted, why, err := b.trusted(ctx)
	if err != nil {
		return err
	}
	b.published.Store(trusted)
	if why != "" {
		slog.Error("the broker signs nothing", "reason", why)
		b.readOnly.Store(&why)
		b.sealed.Store(true)
	}
	if err := b.reload(ctx, 0); err != nil {
		return err
	}
	if b.inForce.Load() == nil {
		return failure.New(failure.Internal, "cannot read the policy in force from the store").
			WithHint("restore the database from a backup")
	}
	if why != "" || b.sealedByReplica {
		return nil
	}
	// Limits count by the times of entries. One of a time to come would have them count nothing.
	if b.state.Last.Sub(b.clock.now(time.Time{})) > maxSkew && b.state.Last.After(b.signedTime) {
		why = future
		slog.Error("the broker signs nothing", "reason", why)
		b.readOnly.Store(&why)
		b.sealed.Store(true)
		return nil
	}
	if err := b.recover(); err != nil {
		if !b.overtaken(err) {
			return err
		}
		return b.reload(ctx, 0)
	}
	b.sealedByReplica = b.replica != nil
	return nil
}

// overtaken reports whether a failure is that another replica has done the same at the same time.
func (b *Broker) overtaken(err error) bool {
	is := b.replica != nil && failure.Is(err, failure.Conflict)
	if is {
		b.unsettled = nil
	}
	return is
}

// begin makes the first entry of the log, with the policy and the config as their files are. A checkpoint outside of
// the database says that there was a log before.
func (b *Broker) begin() error {
	if _, err := os.Stat(b.options.Log.File); err == nil {
		return failure.New(failure.Conflict, "the database is empty, but %s has a checkpoint of its log", b.options.Log.File).
			WithHint("restore the database; to begin a new log, move the checkpoint's file away")
	}
	p, err := policy.Parse(b.options.Policy)
	if err != nil {
		return err
	}
	named := func(name string) bool {
		return slices.ContainsFunc(p.Groups(), func(g policy.Group) bool {
			return slices.ContainsFunc(g.Members, func(m policy.Person) bool { return m.Name == name })
		})
	}
	b.state, b.tree = newState(b.options.Limits.Requests.Per), emptyTree()
	batch := &store.Batch{Documents: [][]byte{b.options.Policy, b.options.Config}}
	d := &decision{state: b.state, b: b, now: b.clock.now(time.Time{}), batch: batch}
	err = d.event(Event{Type: opened, Origin: b.options.Log.Origin, Policy: hashOf(b.options.Policy),
		Config: hashOf(b.options.Config)})
	if err == nil {
		err = d.first(b.options.First, named)
	}
	if err != nil {
		return err
	}
	return b.save(noTurn{b.options.Store}, batch)
}

// signFirst signs the checkpoint of a log that has its first entries alone, unless there is one.
func (b *Broker) signFirst(ctx context.Context) error {
	if _, err := os.Stat(b.options.Log.File); err == nil {
		return nil
	}
	size := int64(1 + len(b.options.First))
	err := b.options.Store.Entries(ctx, 0, size, func(index int64, entry []byte) error {
		e, err := decodeEvent(entry)
		if err != nil || !b.isFirst(ctx, index, e) {
			return failure.New(failure.Conflict, "cannot begin the log: the database has another policy, config or first approver "+
				"than the files").WithHint("nothing was signed with it: move the database away, and start the broker again")
		}
		return nil
	})
	if err != nil {
		return err
	}
	tree, err := translog.NewTree(ctx, size, b.tiles)
	if err != nil {
		return err
	}
	note, err := b.options.Log.Sign(ctx, translog.Checkpoint{Origin: b.options.Log.Origin, Size: size, Root: tree.Root()})
	if err != nil {
		return failure.From(err).WithHint("the broker begins its log with a first checkpoint: its key must be within reach")
	}
	if err := writeFile(b.options.Log.File, note); err != nil {
		return err
	}
	return b.options.Store.Commit(ctx, &store.Batch{First: size, Checkpoint: note})
}

// isFirst reports whether an entry is the one with which the files begin the log, at an index.
func (b *Broker) isFirst(ctx context.Context, index int64, e *Event) bool {
	if index == 0 {
		return e.Type == opened && e.Policy == hashOf(b.options.Policy) && e.Config == hashOf(b.options.Config)
	}
	p := b.options.First[index-1]
	if e.Approver != b.personID(p.Name) {
		return false
	}
	if p.Credential == nil {
		return e.Type == invited && e.Invitation == p.Invitation
	}
	c, err := b.credential(ctx, e.Credential)
	return err == nil && e.Type == enrolled && c.Approver == e.Approver && c.Kind == p.Credential.Kind &&
		bytes.Equal(c.Public, p.Credential.Public) && c.Passkey == nil
}

func emptyTree() *translog.Tree {
	t, err := translog.NewTree(context.Background(), 0, nil)
	if err != nil {
		panic(err) // an empty tree reads nothing
	}
	return t
}

// trusted returns the newest checkpoint that verifies, and why nothing may be signed if the database does not have what
// the file outside of it says. It fails for a database that does not have what its own checkpoint says.
func (b *Broker) trusted(ctx context.Context) (*published, string, error) {
	in, err := b.options.Store.Checkpoint(ctx)
	if err != nil {
		return nil, "", err
	}
	size, err := b.options.Store.Size(ctx) // after the checkpoint: other replicas may add to the log
	if err != nil {
		return nil, "", err
	}
	newest := &published{}
	if in != nil {
		newest.note = in
		if newest.Checkpoint, err = b.verify(in); err != nil {
			return nil, "", errors.Join(errEdited, err)
		}
		if root, err := b.rootAt(ctx, newest.Size, size); unreached(err) {
			return nil, "", err
		} else if err != nil || root != newest.Root {
			return nil, "", errors.Join(errEdited, err)
		}
	}
	data, err := bound.ReadFile(b.options.Log.File, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return newest, noFile, nil
	}
	if err != nil {
		return nil, "", err
	}
	out, err := b.verify(data)
	if err != nil {
		return nil, "", failure.New(failure.Denied, "cannot verify the checkpoint in %s: %w", b.options.Log.File, err).
			WithHint("check that log.key and log.origin are those of before")
	}
	if out.Size > size {
		return newest, older, nil
	}
	if root, err := b.rootAt(ctx, out.Size, size); unreached(err) {
		return nil, "", err
	} else if err != nil || root != out.Root {
		return newest, forked, nil //nolint:nilerr // tiles that cannot be read are not those of the checkpoint
	}
	if out.Size >= newest.Size {
		newest = &published{Checkpoint: out, note: data}
	}
	return newest, "", nil
}

// rootAt returns the root of the tree of the first entries of the log.
func (b *Broker) rootAt(ctx context.Context, entries, size int64) (translog.Hash, error) {
	if entries > size {
		return translog.Hash{}, fmt.Errorf("the log has %d entries, and its checkpoint says %d", size, entries)
	}
	return translog.RootAt(ctx, b.tiles, entries)
}

// tiles reads a tile of the log.
func (b *Broker) tiles(ctx context.Context, level int, index int64) ([]byte, error) {
	return b.options.Store.Tile(ctx, level, index)
}

// errEdited is the failure of a database whose entries do not fit its tree.
var errEdited = failure.New(failure.Conflict, "the database was edited: it does not fit the log's checkpoint").
	WithHint("restore a backup; the broker does not start with an edited database")

// reload makes the state of what is durable: the newest snapshot that a checkpoint covers, and the entries after it.
// The first entries, as many as own, are this process's: they count before a checkpoint covers them. It fails with
// Conflict if the log has none of some trees.
func (b *Broker) reload(ctx context.Context, own int64, trees ...*translog.Tree) error {
	size, err := b.options.Store.Size(ctx)
	if err != nil {
		return err
	}
	var seal []byte
	if b.replica != nil {
		head, err := b.replica.Store.Head(ctx)
		if err != nil {
			return err
		}
		size, seal = head.Size, head.Seal
	}
	tree, err := translog.NewTree(ctx, size, b.tiles)
	if err != nil {
		return err
	}
	if b.sealedByReplica = len(seal) > 0; b.sealedByReplica {
		if !hmac.Equal(seal, b.seal(tree)) {
			return failure.New(failure.Conflict, "the newest entries of the log in the database are of no replica that has this key").
				WithHint("give all replicas the same key (replicas.key); if they have it, the database was edited: restore a backup")
		}
		own = size
	}
	known := func(t *translog.Tree) bool { return t.Size() == size && t.Root() == tree.Root() }
	if len(trees) > 0 && !slices.ContainsFunc(trees, known) {
		return errEdited
	}
	checkpoint := b.published.Load()
	anchor := checkpoint.Checkpoint
	if b.sealedByReplica { // the newest snapshot can be of another replica, and newer than the checkpoint
		anchor = translog.Checkpoint{Size: size, Root: tree.Root()}
	}
	s, err := b.restore(ctx, anchor)
	if err != nil {
		return err
	}
	void, err := b.voided(ctx, s.Size, max(checkpoint.Size, min(own, size)))
	if err != nil {
		return err
	}
	for _, part := range []struct {
		end  int64
		root translog.Hash
	}{{checkpoint.Size, checkpoint.Root}, {size, tree.Root()}} {
		for s.Size < part.end {
			err := b.replay(ctx, s, translog.Checkpoint{Size: part.end, Root: part.root}, max(checkpoint.Size, own), void)
			if err != nil {
				return err
			}
		}
		if part.end == checkpoint.Size {
			b.signedTime = s.Last
		}
	}
	b.state, b.tree = s, tree
	b.durable.Store(size)
	b.adopt()
	return nil
}

// voids are ranges of entries that permit nothing: [first, end).
type voids [][2]int64

func (v voids) has(index int64) bool {
	for _, one := range v {
		if one[0] <= index && index < one[1] {
			return true
		}
	}
	return false
}

// voided returns which entries permit nothing, as entries of the signed log say.
func (b *Broker) voided(ctx context.Context, first, covered int64) (voids, error) {
	var all, void voids
	err := b.options.Store.Entries(ctx, first, covered, func(index int64, entry []byte) error {
		if !bytes.Contains(entry, []byte(`"type":"`+voided+`"`)) {
			return nil
		}
		e, err := decodeEvent(entry)
		if err == nil && e.Type == voided {
			all = append(all, [2]int64{e.Index, index})
		}
		return err
	})
	for _, one := range slices.Backward(all) { // later ones can make it void
		if !void.has(one[1]) {
			void = append(void, one)
		}
	}
	return void, err
}

// replay applies a page of entries to a state. Each must be in the tree of a checkpoint. What permits something counts
// only before the end of the signed log, and unless it is void.
func (b *Broker) replay(ctx context.Context, s *state, in translog.Checkpoint, covered int64,
	void voids) error {
	first, end := s.Size, min(s.Size+entryPage, in.Size)
	entries := make([][]byte, 0, end-first)
	err := b.options.Store.Entries(ctx, first, end, func(index int64, entry []byte) error {
		if index != first+int64(len(entries)) {
			return errEdited
		}
		entries = append(entries, entry)
		return nil
	})
	if err != nil {
		return err
	}
	if int64(len(entries)) != end-first {
		return errEdited
	}
	if err := translog.CheckEntries(ctx, b.tiles, in, first, entries); err != nil {
		return errors.Join(errEdited, err)
	}
	for i, entry := range entries {
		index := first + int64(i)
		e, err := decodeEvent(entry)
		if err != nil {
			b.outdate(index, err)
			return failure.New(failure.Unsupported, "cannot read entry %d of the log, which a newer version has written: %w", index,
				err).WithHint("upgrade this program")
		}
		if e.Permits() && (index >= covered || void.has(index)) {
			s.Size++
			continue
		}
		if e.Type == opened && index > 0 {
			return errEdited
		}
		s.apply(e, index < covered && !void.has(index))
	}
	return nil
}

// recover ends what was under way when the broker stopped: intents without an outcome are lost, and what would permit
// something, without a checkpoint, is void.
func (b *Broker) recover() error {
	batch := &store.Batch{First: b.state.Size}
	d := &decision{state: b.state, b: b, now: b.clock.now(b.state.Last), batch: batch}
	if err := d.loseAll(); err != nil {
		return err
	}
	if err := d.void(b.published.Load().Size, batch.First); err != nil {
		return err
	}
	if b.replica != nil && len(batch.Entries) == 0 { // replicas follow no log without a seal: this makes the first one
		return b.write(noTurn{b.options.Store}, batch)
	}
	return b.save(noTurn{b.options.Store}, batch)
}

// void logs of entries that no checkpoint covers, and that are not known to be this process's, that they permit
// nothing. Otherwise they would, once one covers them.
func (d *decision) void(first, end int64) error {
	found := false
	var requests []string
	epochs := map[string]bool{} // requests for a new epoch that has begun
	err := d.b.options.Store.Entries(context.Background(), first, end, func(_ int64, entry []byte) error {
		e, err := decodeEvent(entry)
		if err != nil {
			return err
		}
		alive := d.Requests[e.Request]
		found = found || e.Permits() || e.Type == intended && alive != nil && alive.Bare
		epochs[e.Request] = epochs[e.Request] || e.What == ChangeEpoch
		if e.Permits() && e.Request != "" && alive == nil && !epochs[e.Request] {
			requests = append(requests, e.Request)
		}
		return nil
	})
	if err != nil || !found {
		return err
	}
	if err := d.event(Event{Type: voided, Index: first}); err != nil {
		return err
	}
	for id, r := range d.Requests { // approvals may have been among them
		if len(r.Votes) > 0 || r.State == brokerapi.Pending {
			d.refresh(id)
		}
	}
	for _, id := range requests {
		d.finish(id, brokerapi.Expired, "the broker stopped before the log had a signed checkpoint of it: try again")
	}
	return nil
}

// loseAll ends the intents whose outcome nobody knows.
func (d *decision) loseAll() error {
	for _, r := range d.Requests {
		if r.State != brokerapi.Signing || d.alive(r) {
			continue
		}
		if err := d.event(Event{Type: lost, Request: r.ID, Key: r.Key, Payload: r.Payload}); err != nil {
			return err
		}
		d.finish(r.ID, brokerapi.Lost, "the broker stopped before it knew whether the module had signed")
	}
	return nil
}

// alive reports whether somebody fulfils the intent of a request.
func (d *decision) alive(r *request) bool {
	others := d.b.replica
	if others == nil || r.Replica == others.turn {
		return d.b.live[r.ID]
	}
	return slices.Contains(others.alive, r.Replica)
}

// adopt puts into force what a checkpoint covers, or what replicas have sealed.
func (b *Broker) adopt() {
	b.tell()
	s, current := b.state, b.inForce.Load()
	covered := int64(0)
	if newest := b.published.Load(); newest != nil {
		covered = newest.Size
	}
	if b.replica != nil && b.sealedByReplica {
		covered = s.Size
	}
	if (current == nil || current.index != s.Index) && s.Index < covered {
		next, err := b.load(s)
		if err != nil {
			slog.Error("cannot read the policy in force", "error", err)
			why := badPolicy
			b.readOnly.Store(&why)
			return
		}
		b.inForce.Store(next)
	}
	if b.sealed.Load() {
		return
	}
	why := b.readOnly.Load()
	if why != nil && *why == badPolicy { // it has been read now
		why = nil
		b.readOnly.Store(nil)
	}
	if differs := s.Config != hashOf(b.options.Config); differs && why == nil {
		reason := newConfig
		b.readOnly.Store(&reason)
	} else if !differs && why != nil && *why == newConfig {
		b.readOnly.Store(nil)
	}
}

// load reads the policy in force. Its SHA-256 is in the log, so that another one in the store is none.
func (b *Broker) load(s *state) (*inForce, error) {
	digest, err := parseHash(s.Policy)
	if err != nil {
		return nil, err
	}
	data, err := b.options.Store.Document(context.Background(), digest)
	if err != nil {
		return nil, err
	}
	if sha256.Sum256(data) != digest {
		return nil, failure.New(failure.Internal, "the policy in the store is not the one of the log")
	}
	p, err := policy.Parse(data)
	if err != nil {
		return nil, err
	}
	in := &inForce{policy: p, digest: s.Policy, since: s.Since, index: s.Index}
	b.people(in)
	return in, nil
}

// origin returns the name of the log: another one in each epoch but the first.
func (b *Broker) origin() string {
	if b.state == nil || b.state.Epoch <= 1 {
		return b.options.Log.Origin
	}
	return b.options.Log.Origin + "/" + strconv.FormatInt(b.state.Epoch, 10)
}
