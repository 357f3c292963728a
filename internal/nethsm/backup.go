package nethsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

const (
	backupLimit = 1 << 30 // bytes
	backupMagic = "_NETHSM_BACKUP_"
	backupEnd   = "_NETHSM_BACKUP_END_"
)

// Backup returns a backup of the whole NetHSM, encrypted by the NetHSM under its backup passphrase. It fails with
// Internal when the backup is incomplete.
func (b *Backend) Backup(ctx context.Context, s *config.Settings) ([]byte, error) {
	if s.NetHSM.BackupUser == "" {
		return nil, failure.New(failure.Invalid, "no user for backups of the NetHSM is set").
			WithHint("write backup-user and backup-pin-source under nethsm in the config file: only a user with the role " +
				"Backup makes backups")
	}
	c, err := b.newClient(s)
	if err != nil {
		return nil, err
	}
	defer c.close()
	r := request{what: "the backup", method: http.MethodPost, path: "/system/backup", accept: typeBytes,
		as: c.credential(s.NetHSM.BackupUser, s.NetHSM.BackupPINSource), limit: backupLimit, slow: true}
	a, err := c.do(ctx, r)
	if err != nil {
		return nil, err
	}
	if a.status == http.StatusPreconditionFailed {
		return nil, failure.New(failure.Denied, "the NetHSM has no backup passphrase (412)").
			WithHint("have an administrator set it once: nitropy nethsm set-backup-passphrase, or PUT " +
				"/api/v1/config/backup-passphrase")
	}
	if err := r.want(a, http.StatusOK); err != nil {
		return nil, err
	}
	if err := checkBackup(a.body); err != nil {
		return nil, malformed(r.what, err)
	}
	return a.body, nil
}

// checkBackup fails unless a backup has all its parts. The format is that of the NetHSM's source: the magic, one byte
// of version, then fields, each after its length in three bytes. The first fields are the salt, the version and the
// domain key, in version 1 also the device ID and the key of the configuration; the others are one for each entry. In
// version 1 an empty field and a trailer follow. The content of the fields is encrypted, so it cannot be checked
// without the backup passphrase.
func checkBackup(backup []byte) error {
	rest, ok := bytes.CutPrefix(backup, []byte(backupMagic))
	if !ok || len(rest) == 0 {
		return errors.New("it does not begin like a backup")
	}
	version := rest[0]
	least := map[byte]int{0: 3, 1: 5}[version]
	if least == 0 {
		return fmt.Errorf("unknown version %d of the backup format", version)
	}
	rest = rest[1:]
	for fields := 0; ; fields++ {
		if len(rest) == 0 && version == 0 && fields >= least {
			return nil
		}
		if len(rest) < 3 {
			return errors.New("its end is missing")
		}
		length := int(rest[0])<<16 | int(rest[1])<<8 | int(rest[2])
		if rest = rest[3:]; length > len(rest) {
			return errors.New("its end is missing")
		}
		if length == 0 {
			if version == 0 || fields < least {
				return errors.New("a field is missing")
			}
			break
		}
		rest = rest[length:]
	}
	if !bytes.Equal(rest, []byte(backupEnd)) {
		return errors.New("it does not end like a backup")
	}
	return nil
}
