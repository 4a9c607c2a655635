package configure

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
)

// owner is a user of the image.
type owner struct{ uid, gid int }

// write replaces a file, owned by root. A symlink in its place is replaced,
// not followed; one on the way to it is followed inside the root only.
func (t *target) write(name string, data []byte, mode fs.FileMode) error {
	return t.writeAs(name, data, mode, owner{})
}

func (t *target) writeAs(name string, data []byte, mode fs.FileMode, o owner) error {
	if err := t.root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	if err := t.remove(name); err != nil {
		return err
	}
	f, err := t.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if t.chown {
		err = errors.Join(err, f.Chown(o.uid, o.gid))
	}
	// Again, since creation obeys the umask.
	return errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
}

func (t *target) remove(name string) error {
	if err := t.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// account is a line of /etc/passwd.
type account struct {
	owner
	home string // relative to the root
}

// lookup finds a user of the image.
func (t *target) lookup(user string) (account, bool, error) {
	passwd, err := t.read("etc/passwd")
	if err != nil {
		return account{}, false, err
	}
	return parsePasswd(string(passwd), user)
}

func parsePasswd(passwd, user string) (account, bool, error) {
	for line := range strings.Lines(passwd) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) != 7 || f[0] != user {
			continue
		}
		uid, err1 := strconv.ParseUint(f[2], 10, 31)
		gid, err2 := strconv.ParseUint(f[3], 10, 31)
		home := strings.TrimPrefix(path.Clean("/"+f[5]), "/")
		if err := errors.Join(err1, err2); err != nil || home == "" {
			return account{}, false, fmt.Errorf("the image's entry of user %s is malformed", user)
		}
		return account{owner{int(uid), int(gid)}, home}, true, nil
	}
	return account{}, false, nil
}

// authorizedKeys lets the keys' owners log in as the image's user.
func (t *target) authorizedKeys() error {
	if t.m.User == "" || len(t.p.SSHKeys) == 0 {
		return nil
	}
	a, ok, err := t.lookup(t.m.User)
	if err != nil {
		return err
	}
	if !ok {
		if t.m.Configure == "nocloud" {
			return nil // cloud-init makes the user, and gets the keys
		}
		return fmt.Errorf("the image has no user %s", t.m.User)
	}
	dir := path.Join(a.home, ".ssh")
	if info, err := t.root.Lstat(dir); err == nil && !info.IsDir() {
		return fmt.Errorf("/%s is not a folder", dir)
	}
	if err := t.root.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := t.root.Chmod(dir, 0o700); err != nil {
		return err
	}
	if t.chown {
		if err := t.root.Chown(dir, a.uid, a.gid); err != nil {
			return err
		}
	}
	var b strings.Builder
	for _, k := range t.p.SSHKeys {
		b.WriteString(strings.TrimSpace(k) + "\n")
	}
	return t.writeAs(path.Join(dir, "authorized_keys"), []byte(b.String()), 0o600, a.owner)
}
