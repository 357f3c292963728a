package notaryv1

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// FromFolder reads a repository from a trust folder of Docker or of Notary's client, ~/.docker/trust or ~/.notary. The
// folder has what the server said when the repository was last read through it, which may not be its last state.
func FromFolder(ctx context.Context, dir, gun string, pin Pin) (*Repository, error) {
	if err := CheckGUN(gun); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir) // so that no link leads out of it
	if err != nil {
		return nil, failure.New(failure.NotFound, "cannot open trust folder: %w", err).
			WithHint("name the folder that has the folder tuf, such as ~/.docker/trust")
	}
	defer root.Close()
	return readRepository(ctx, folder{root, gun}, gun, pin)
}

// folder is a trust folder: tuf/GUN/metadata/ROLE.json.
type folder struct {
	root *os.Root
	gun  string
}

func (f folder) read(_ context.Context, want file, limit int) ([]byte, error) {
	name := want.role + ".json"
	if want.version > 0 {
		name = strconv.FormatInt(want.version, 10) + "." + name
	}
	name = path.Join("tuf", f.gun, "metadata", name)
	// Without O_NONBLOCK, opening a named pipe without a writer never returns.
	file, err := f.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, failure.New(failure.NotFound, "cannot read metadata of %q: the trust folder has no %s", f.gun, name).
			WithHint("take the folder of a machine that has pulled or signed this repository")
	}
	if err != nil {
		return nil, failure.New(failure.Denied, "cannot open metadata of %q: %w", f.gun, err)
	}
	defer file.Close()
	data, err := readLimited(file, limit)
	if err != nil {
		return nil, failure.New(failure.Invalid, "cannot read %s: %w", name, err)
	}
	return data, nil
}

// readLimited reads all, and fails when it is more than limit bytes.
func readLimited(from io.Reader, limit int) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(from, int64(limit)+1))
	if err == nil && len(data) > limit {
		err = fmt.Errorf("it is larger than %d bytes", limit)
	}
	return data, err
}
