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

// Backup returns a backup of the whole NetHSM, encrypted by it under its backup passphrase.
func Backup(ctx context.Context, s *config.Settings) ([]byte, error) {
	if s.NetHSM.BackupUser == "" {
		return nil, failure.New(failure.Denied, "no user for backups of the NetHSM is named").
			WithHint("write backup-user and backup-pin-source under nethsm in the config file: only a user of the role " +
				"Backup may do this")
	}
	c, err := newClient(s)
	if err != nil {
		return nil, err
	}
	defer c.close()
	as := &credential{user: s.NetHSM.BackupUser, source: s.NetHSM.BackupPINSource}
	r := request{what: "the backup", method: http.MethodPost, path: "/system/backup", accept: typeBytes, as: as,
		limit: backupLimit, slow: true}
	a, err := c.do(ctx, r)
	if err != nil {
		return nil, err
	}
	if a.status == http.StatusPreconditionFailed {
		return nil, failure.New(failure.Denied, "the NetHSM has no backup passphrase (412)").
			WithHint("an administrator sets it once: nitropy nethsm set-backup-passphrase, or PUT " +
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

// checkBackup verifies that a backup has all its parts, by the form that the NetHSM's source gives it: the magic and
// one byte of version, then fields, each after its length in three bytes. The first are the salt, the version and the
// domain key, and in version 1 the device's ID and its configuration's key; the others are one for each entry. In
// version 1 an empty field and a trailer end it. What is in the fields is encrypted, so nobody can look further without
// the backup passphrase.
func checkBackup(backup []byte) error {
	rest, ok := bytes.CutPrefix(backup, []byte(backupMagic))
	if !ok || len(rest) == 0 {
		return errors.New("it does not begin as a backup does")
	}
	version := rest[0]
	least := map[byte]int{0: 3, 1: 5}[version]
	if least == 0 {
		return fmt.Errorf("it is a backup of version %d, which is not known here", version)
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
				return errors.New("a part of it is missing")
			}
			break
		}
		rest = rest[length:]
	}
	if !bytes.Equal(rest, []byte(backupEnd)) {
		return errors.New("it does not end as a backup does")
	}
	return nil
}
