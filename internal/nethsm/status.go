package nethsm

import (
	"context"
	"net/http"
	"sync"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Instance is what one instance reports about itself.
type Instance struct {
	URL     string `json:"url"`
	State   State  `json:"state"`             // "unknown" when it does not respond
	Product string `json:"product,omitempty"` // and its vendor
	Version string `json:"version,omitempty"` // which only an administrator outside of any namespace can read
	Error   string `json:"error,omitempty"`
}

// Member is a member of the cluster, as reported by an instance.
type Member struct {
	ID      string   `json:"id"`
	Name    string   `json:"name"`
	URLs    []string `json:"urls"`
	Learner bool     `json:"learner"`
}

// Status is the state of a cluster.
type Status struct {
	Instances []Instance `json:"instances"`
	Members   []Member   `json:"members"`          // empty without an administrator
	Remark    string     `json:"remark,omitempty"` // why versions or members are missing
}

// Status asks each instance for its state, and, if the settings name an administrator, for its version and the members
// of the cluster. An instance that does not respond is part of the result.
func (b *Backend) Status(ctx context.Context, s *config.Settings) (*Status, error) {
	c, err := b.newClient(s)
	if err != nil {
		return nil, err
	}
	defer c.close()
	status := &Status{Instances: make([]Instance, len(s.NetHSM.Instances)), Members: []Member{}}
	c.forEachInstance(func(i int, url string) { status.Instances[i] = c.readState(ctx, url) })
	admin, err := c.administrator()
	if err != nil {
		status.Remark = "only an administrator can read versions and members, and none is set under nethsm"
		return status, nil
	}
	for i := range status.Instances {
		if instance := &status.Instances[i]; instance.State == Operational {
			if err := c.readVersion(ctx, admin, instance, status); err != nil {
				status.Remark = failure.From(err).Error()
			}
		}
	}
	return status, nil
}

// forEachInstance calls do for all instances at the same time, and returns when all calls have.
func (c *client) forEachInstance(do func(i int, url string)) {
	var all sync.WaitGroup
	for i, url := range c.settings.NetHSM.Instances {
		all.Go(func() { do(i, url) })
	}
	all.Wait()
}

// readState reads what an instance reports without credentials.
func (c *client) readState(ctx context.Context, url string) Instance {
	i := Instance{URL: url, State: unknownState}
	r := request{what: "reading the state", method: http.MethodGet, path: "/health/state"}
	err := c.askOne(ctx, url, r, func(body []byte) (err error) { i.State, err = parseState(body); return err })
	if err != nil {
		i.State, i.Error = unknownState, failure.From(err).Error()
		return i
	}
	var info struct{ Vendor, Product string }
	r = request{what: "reading the product", method: http.MethodGet, path: "/info"}
	if err := c.askOne(ctx, url, r, func(body []byte) error { return decode(r.what, body, &info) }); err != nil {
		i.Error = failure.From(err).Error()
		return i
	}
	i.Product = truncate(info.Product) + ", " + truncate(info.Vendor)
	return i
}

// readVersion reads the version of an instance, and the members of the cluster unless status has them.
func (c *client) readVersion(ctx context.Context, admin *credential, i *Instance, status *Status) error {
	var system struct {
		Version string `json:"softwareVersion"`
	}
	r := request{what: "reading the version", method: http.MethodGet, path: "/system/info", as: admin}
	if err := c.askOne(ctx, i.URL, r, func(body []byte) error { return decode(r.what, body, &system) }); err != nil {
		return err
	}
	i.Version = truncate(system.Version)
	if len(status.Members) > 0 {
		return nil
	}
	r = request{what: "reading the members", method: http.MethodGet, path: "/cluster/members", as: admin}
	return c.askOne(ctx, i.URL, r, func(body []byte) error { return decode(r.what, body, &status.Members) })
}
