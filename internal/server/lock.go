package server

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Lock takes a folder for this process, until release is called or the process
// ends, however it ends. Two writers would spoil each other's files.
func Lock(dir string) (release func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			b := make([]byte, 32)
			n, _ := f.ReadAt(b, 0)
			return nil, fmt.Errorf("%s is in use by another broker (process %s): stop it, or give this one a folder of its own", dir, strings.TrimSpace(string(b[:n])))
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	_, err = f.WriteAt(fmt.Appendf(nil, "%-12d\n", os.Getpid()), 0) // for whoever finds it locked
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { f.Close() }, nil
}

// checkOwner refuses a folder that somebody else can write to. (The
// superuser's is as good as our own; in Kubernetes volumes belong to it.)
func checkOwner(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.IsDir():
		return fmt.Errorf("%s is not a folder", dir)
	case !ok:
		return nil
	case int(st.Uid) != os.Geteuid() && st.Uid != 0:
		return fmt.Errorf("%s belongs to user %d, and this is user %d: who owns it can change what the broker keeps there", dir, st.Uid, os.Geteuid())
	case info.Mode().Perm()&0o002 != 0:
		return fmt.Errorf("%s has mode %04o: everybody can write there (chmod 0700)", dir, info.Mode().Perm())
	case info.Mode().Perm()&0o020 != 0 && int(st.Uid) == os.Geteuid() && st.Uid != 0:
		return fmt.Errorf("%s has mode %04o: its group can write there (chmod 0700)", dir, info.Mode().Perm())
	}
	return nil
}

// checkPrivate refuses a file with a secret that others can read. A file of the
// superuser's may be readable to our group, as Kubernetes mounts secrets.
func checkPrivate(file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	groups, _ := os.Getgroups()
	ours := int(st.Gid) == os.Getegid() || slices.Contains(groups, int(st.Gid))
	perm := info.Mode().Perm()
	switch {
	case perm&0o007 != 0:
		return fmt.Errorf("%s has mode %04o: others can read it (chmod 0600)", file, perm)
	case perm&0o070 != 0 && (int(st.Uid) == os.Geteuid() || !ours):
		return fmt.Errorf("%s has mode %04o: its group can read it (chmod 0600)", file, perm)
	case int(st.Uid) != os.Geteuid() && st.Uid != 0:
		return fmt.Errorf("%s belongs to user %d, and this is user %d", file, st.Uid, os.Geteuid())
	}
	return nil
}
