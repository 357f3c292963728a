package image

import (
	"context"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/deadline"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/harden"
	"github.com/notation-hsm/notation-hsm/internal/sandbox"
)

// DecoderUser is whom the decoder goes on as, if the system has such a user.
const DecoderUser = "hsm-image"

// Limits of a decoder. The module counts as well while it is loaded, and a layer may be large.
const (
	decoderMemory = 1 << 30 // bytes of data, beyond what the process has at its start
	decoderCPU    = 3600    // seconds of processor time: hundreds of gigabytes
	confineLimit  = 10 * time.Second
)

// Confined returns a decoder that gives up the rights of its process, in two steps: before anything is read there are
// limits and no new privileges; once the module has opened the layer's key and is closed again, the process goes on as
// a user, without any file. The module itself keeps its files, devices and daemons, which differ from vendor to vendor.
// An empty name keeps the user.
func (d Decoder) Confined(user string) (Decoder, error) {
	d.confined = true
	if user == "" {
		return d, nil
	}
	found, err := sandbox.LookUp(user)
	if err != nil {
		return d, failure.New(failure.Invalid, "cannot find the decoder's user: %w", err).
			WithHint("make the user, or print containerd's configuration again with --user root")
	}
	d.user = &found
	return d, nil
}

// limit is the first step.
func (d Decoder) limit() error {
	if !d.confined {
		return nil
	}
	if err := (sandbox.Limits{Memory: decoderMemory, CPU: decoderCPU}).Set(); err != nil {
		return confinementFailed(err)
	}
	if err := harden.Privileges(); err != nil {
		return confinementFailed(err)
	}
	return nil
}

// giveUpFiles is the second step. A thread that the module has left behind could keep it waiting.
func (d Decoder) giveUpFiles(ctx context.Context) error {
	if !d.confined {
		return nil
	}
	late := func() error {
		return failure.New(failure.Timeout, "the decoder could not be confined within %s",
			confineLimit).
			WithHint("report which module it is")
	}
	return deadline.Step(ctx, confineLimit, late, func() error {
		if err := (sandbox.Files{}).Restrict(); err != nil {
			return confinementFailed(err)
		}
		if d.user != nil {
			if err := d.user.Become(); err != nil {
				return confinementFailed(err)
			}
		}
		return nil
	})
}

func confinementFailed(err error) error {
	return failure.New(failure.Internal, "cannot confine the decoder: %w", err).WithHint("see containerd's log")
}
