package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// A User is whom a process can become.
type User struct {
	Name   string
	ID     int
	Group  int
	Groups []int // all of them
}

// LookUp returns the system's user of a name.
func LookUp(name string) (User, error) {
	found, err := user.Lookup(name)
	if err != nil {
		return User{}, err
	}
	ids, err := found.GroupIds()
	if err != nil {
		return User{}, fmt.Errorf("cannot find the groups of user %s: %w", name, err)
	}
	u := User{Name: name}
	groups := make([]int, len(ids))
	var errs []error
	for i, id := range ids {
		groups[i], err = strconv.Atoi(id)
		errs = append(errs, err)
	}
	u.Groups = groups
	u.ID, err = strconv.Atoi(found.Uid)
	errs = append(errs, err)
	u.Group, err = strconv.Atoi(found.Gid)
	return u, errors.Join(append(errs, err)...)
}

// Become has the process, with all its threads, go on as this user, with none of root's rights and no way back. It is
// called as root; who is not root can only stay who they are.
func (u User) Become() error {
	if os.Geteuid() == u.ID {
		return nil
	}
	if err := syscall.Setgroups(u.Groups); err != nil {
		return fmt.Errorf("cannot take the groups of user %s: %w", u.Name, err)
	}
	if err := syscall.Setgid(u.Group); err != nil {
		return fmt.Errorf("cannot take the group of user %s: %w", u.Name, err)
	}
	if err := syscall.Setuid(u.ID); err != nil {
		return fmt.Errorf("cannot become user %s: %w", u.Name, err)
	}
	if u.ID != 0 && syscall.Setuid(0) == nil { //nolint:gosec // it has to fail
		return fmt.Errorf("user %s can become root again", u.Name)
	}
	return nil
}
