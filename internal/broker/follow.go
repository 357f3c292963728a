package broker

import (
	"context"
	"strconv"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Published returns the number of entries that the newest checkpoint covers.
func (b *Broker) Published() int64 {
	if newest := b.published.Load(); newest != nil {
		return newest.Size
	}
	return 0
}

// followerPrefix begins the names of positions in the store.
const followerPrefix = "follower/"

// Position returns the index of the first entry that a follower of the log, such as a feed, has not got; 0 for one that
// is new.
func (b *Broker) Position(ctx context.Context, follower string) (int64, error) {
	kept, err := b.options.Store.Meta(ctx, followerPrefix+follower)
	if err != nil || kept == nil {
		return 0, err
	}
	position, err := strconv.ParseInt(string(kept), 10, 64)
	if err != nil || position < 0 {
		return 0, failure.New(failure.Internal, "cannot read the position of the feed %s in the store", follower)
	}
	return position, nil
}

// SetPosition keeps the position of a follower with the next decisions.
func (b *Broker) SetPosition(ctx context.Context, follower string, position int64) error {
	return b.do(ctx, func(d *decision) error {
		d.meta(followerPrefix+follower, strconv.AppendInt(nil, position, 10))
		return nil
	})
}

// meta keeps a value in the store, under a name.
func (d *decision) meta(name string, value []byte) {
	if d.batch.Meta == nil {
		d.batch.Meta = map[string][]byte{}
	}
	d.batch.Meta[name] = value
}
