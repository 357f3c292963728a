package nethsm

import (
	"context"
	"net/http"
	"sync"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Instance is what one instance says of itself.
type Instance struct {
	URL     string `json:"url"`
	State   State  `json:"state"`             // "unknown" when it can't be asked
	Product string `json:"product,omitempty"` // and its vendor
	Version string `json:"version,omitempty"` // of its software; only an administrator outside of any namespace is told
	Error   string `json:"error,omitempty"`
}

// Member is one of the cluster, as its members know each other.
type Member struct {
	ID      string   `json:"id"`
	Name    string   `json:"name"`
	URLs    []string `json:"urls"`
	Learner bool     `json:"learner"`
}

// Status is the state of a cluster.
type Status struct {
	Instances []Instance `json:"instances"`
	Members   []Member   `json:"members"`          // none without an administrator
	Remark    string     `json:"remark,omitempty"` // why versions or members are missing
}

// Ask asks each instance for its state, and, if the settings name an administrator, for its version and the cluster's
// members.
func Ask(ctx context.Context, s *config.Settings) (*Status, error) {
	c, err := newClient(s)
	if err != nil {
		return nil, err
	}
	defer c.close()
	admin, adminErr := administrator(s)
	status := &Status{Instances: make([]Instance, len(s.NetHSM.Instances)), Members: []Member{}}
	var all sync.WaitGroup
	for i, url := range s.NetHSM.Instances {
		all.Go(func() { status.Instances[i] = c.examine(ctx, url) })
	}
	all.Wait()
	if adminErr != nil {
		status.Remark = "versions and members are told to an administrator alone, and none is named under nethsm"
		return status, nil
	}
	for i := range status.Instances {
		if instance := &status.Instances[i]; instance.State == Operational {
			if err := c.examineAs(ctx, admin, instance, status); err != nil {
				status.Remark = failure.From(err).Error()
			}
		}
	}
	return status, nil
}

func (c *client) examine(ctx context.Context, url string) Instance {
	i := Instance{URL: url, State: unknownState}
	r := request{what: "asking for the state", method: http.MethodGet, path: "/health/state"}
	err := c.tell(ctx, url, r, func(body []byte) (err error) { i.State, err = parseState(body); return err })
	if err != nil {
		i.State, i.Error = unknownState, failure.From(err).Error()
		return i
	}
	var info struct{ Vendor, Product string }
	r = request{what: "asking for the product", method: http.MethodGet, path: "/info"}
	if err := c.tell(ctx, url, r, func(body []byte) error { return decode(r.what, body, &info) }); err != nil {
		i.Error = failure.From(err).Error()
		return i
	}
	i.Product = clip(info.Product) + ", " + clip(info.Vendor)
	return i
}

func (c *client) examineAs(ctx context.Context, admin *credential, i *Instance, status *Status) error {
	var system struct {
		Version string `json:"softwareVersion"`
	}
	r := request{what: "asking for the version", method: http.MethodGet, path: "/system/info", as: admin}
	if err := c.tell(ctx, i.URL, r, func(body []byte) error { return decode(r.what, body, &system) }); err != nil {
		return err
	}
	i.Version = clip(system.Version)
	if len(status.Members) > 0 {
		return nil
	}
	r = request{what: "asking for the members", method: http.MethodGet, path: "/cluster/members", as: admin}
	return c.tell(ctx, i.URL, r, func(body []byte) error { return decode(r.what, body, &status.Members) })
}

// tell asks this instance and no other.
func (c *client) tell(ctx context.Context, url string, r request, read func([]byte) error) error {
	if err := r.ready(ctx, c); err != nil {
		return err
	}
	a, t := c.try(ctx, c.settings.Timeout, url, r)
	if t != nil {
		return t.err
	}
	if err := r.want(a, http.StatusOK); err != nil {
		return err
	}
	return read(a.body)
}
