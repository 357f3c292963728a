package nethsm

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/nethsm/nethsmtest"
)

// TestStatus shows each instance, also one that does not respond, and with an administrator versions and members.
func TestStatus(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 3)
	servers[1].SetState(nethsmtest.Locked)
	servers[2].Stop()
	status, err := New(io.Discard).Status(t.Context(), s)
	if err != nil || status.Remark != "" || len(status.Members) != 3 {
		t.Fatalf("%+v, %v", status, err)
	}
	if i := status.Instances[0]; i.State != Operational || i.Version == "" || i.Product == "" || i.Error != "" {
		t.Errorf("%+v", i)
	}
	if i := status.Instances[1]; i.State != Locked || i.Version != "" {
		t.Errorf("%+v", i)
	}
	if i := status.Instances[2]; i.State != unknownState || !strings.HasPrefix(i.Error, "cannot reach ") {
		t.Errorf("%+v", i)
	}
	s.NetHSM.Administrator = ""
	servers[0].ResetRequests()
	status, err = New(io.Discard).Status(t.Context(), s)
	if err != nil || !strings.HasPrefix(status.Remark, "only an administrator") || len(status.Members) != 0 ||
		status.Instances[0].State != Operational {
		t.Errorf("%+v, %v", status, err)
	}
	for _, r := range servers[0].Requests() {
		if r.User != "" {
			t.Errorf("credentials were sent: %+v", r)
		}
	}
}

// TestPartialStatus shows what is known when an instance does not report the rest.
func TestPartialStatus(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	servers[0].Inject(http.MethodGet, "/info", 0, nethsmtest.Respond(http.StatusServiceUnavailable))
	servers[0].Inject(http.MethodGet, "/system/info", 0, nethsmtest.Respond(http.StatusForbidden))
	status, err := New(io.Discard).Status(t.Context(), s)
	if err != nil || status.Instances[0].State != Operational || status.Instances[0].Product != "" ||
		!strings.Contains(status.Instances[0].Error, "503") || !strings.Contains(status.Remark, "(403)") {
		t.Errorf("%+v, %v", status, err)
	}
}
