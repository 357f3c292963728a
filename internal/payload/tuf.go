package payload

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// readTUF reads the metadata of The Update Framework that is signed, the value of "signed", in canonical JSON (OLPC),
// as go-tuf encodes it. The artifact's name is the role that the metadata names, which is "targets" for a delegated
// role too. Its annotations are everything else that the metadata says, by place, such as
// `targets["app.tar.gz"].hashes.sha256`; what applications define, "custom" of a target, is its JSON text.
func readTUF(data []byte) (*Artifact, error) {
	if firstName(data) != "_type" {
		return nil, errOther
	}
	text, err := fromCanonical(data)
	if err != nil {
		return nil, err
	}
	v, err := parseJSON(text)
	if err != nil {
		return nil, err
	}
	a := &Artifact{Format: TUF, Annotations: map[string]string{}}
	if v.members["_type"] != nil {
		a.Name, _ = v.members["_type"].string()
	}
	switch a.Name {
	case "root":
		err = readRoot(text, a)
	case "snapshot", "timestamp":
		err = readSnapshot(text, a)
	case "targets":
		err = readTargets(text, a)
	default:
		err = fmt.Errorf("_type: %.60q is not a role", a.Name)
	}
	if err == nil {
		err = v.describeTUF("", "", a.Annotations)
	}
	return a, err
}

func readRoot(text []byte, a *Artifact) error {
	var m tufRoot
	if err := readJSON(text, &m, encodeTUF); err != nil {
		return err
	}
	r := m.Roles
	return cmp.Or(a.checkTUF(m.Expires, m.SpecVersion, m.Version),
		r.Root.check("roles.root", m.Keys), r.Snapshot.check("roles.snapshot", m.Keys),
		r.Targets.check("roles.targets", m.Keys), r.Timestamp.check("roles.timestamp", m.Keys))
}

func readSnapshot(text []byte, a *Artifact) error {
	var m tufSnapshot
	if err := readJSON(text, &m, encodeTUF); err != nil {
		return err
	}
	if a.Name == "timestamp" && (len(m.Meta) != 1 || m.Meta["snapshot.json"].Version == 0) {
		return errors.New(`meta: not "snapshot.json" alone, which is all that a timestamp names`)
	}
	for _, name := range slices.Sorted(maps.Keys(m.Meta)) {
		file, place := m.Meta[name], join("meta", name)
		if err := checkInteger(place+".version", file.Version, 1); err != nil {
			return err
		}
		if err := checkFile(place, file.Hashes, file.Length); err != nil {
			return err
		}
	}
	return a.checkTUF(m.Expires, m.SpecVersion, m.Version)
}

func readTargets(text []byte, a *Artifact) error {
	var m tufTargets
	if err := readJSON(text, &m, encodeTUF); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(m.Targets)) {
		file, place := m.Targets[name], join("targets", name)
		if len(file.Hashes) == 0 {
			return fmt.Errorf("%s.hashes: no hash", place)
		}
		if err := checkFile(place, file.Hashes, file.Length); err != nil {
			return err
		}
	}
	if m.Delegations != nil {
		if err := m.Delegations.check(); err != nil {
			return err
		}
	}
	return a.checkTUF(m.Expires, m.SpecVersion, m.Version)
}
