package failure_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"syscall"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestError keeps the cause of a failure, and shows the return value of a module but not the hint.
func TestError(t *testing.T) {
	t.Parallel()
	err := failure.New(failure.NotFound, "cannot read %s: %w", "pin", fs.ErrNotExist).WithHint("check the path")
	if err.Error() != "cannot read pin: file does not exist" || err.Hint != "check the path" {
		t.Errorf("%q, hint %q", err, err.Hint)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		t.Error("the cause is lost")
	}
	err.CKR = "CKR_PIN_LOCKED"
	if err.Error() != "cannot read pin: file does not exist (CKR_PIN_LOCKED)" {
		t.Errorf("%q", err)
	}
}

// TestFrom finds a failure within other errors. What is none is a defect of this program.
func TestFrom(t *testing.T) {
	t.Parallel()
	denied := failure.New(failure.Denied, "no")
	wrapped := fmt.Errorf("while signing: %w", denied)
	if failure.From(wrapped) != denied || !failure.Is(wrapped, failure.Denied) || failure.Is(wrapped, failure.Invalid) {
		t.Errorf("%v is %v", wrapped, failure.From(wrapped).Kind)
	}
	other := failure.From(fs.ErrClosed)
	if other.Kind != failure.Internal || other.What != fs.ErrClosed.Error() || !errors.Is(other, fs.ErrClosed) {
		t.Errorf("%+v", other)
	}
	if failure.Is(nil, failure.Internal) || failure.Is(fs.ErrClosed, failure.Internal) {
		t.Error("an error of another type is a failure of a kind")
	}
}

// TestFileKind maps the operating system's errors about a file to kinds.
func TestFileKind(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		want failure.Kind
	}{
		{fs.ErrNotExist, failure.NotFound}, {fs.ErrPermission, failure.Denied}, {fs.ErrExist, failure.Conflict},
		{syscall.ENOSPC, failure.Unavailable}, {syscall.EISDIR, failure.Invalid}, {io.ErrUnexpectedEOF, failure.Invalid},
	} {
		if got := failure.FileKind(&fs.PathError{Op: "open", Path: "pin", Err: c.err}); got != c.want {
			t.Errorf("%v is of kind %d, not %d", c.err, got, c.want)
		}
	}
}
