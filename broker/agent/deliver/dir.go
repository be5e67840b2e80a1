package deliver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// File systems without a disk below (statfs(2)).
const (
	tmpfsMagic = 0x01021994
	ramfsMagic = 0x858458f6
)

// checkDir makes the folder where it is missing, and refuses one that others can write to or that is on a disk.
func checkDir(dir string, allowDisk bool) error {
	if dir == "" {
		return fmt.Errorf("dir: missing")
	}
	if err := makeDirs(dir); err != nil {
		return fmt.Errorf("dir: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("dir: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.IsDir():
		return fmt.Errorf("dir: %s is not a folder (a link is not followed)", dir)
	case !ok || int(st.Uid) != os.Geteuid():
		return fmt.Errorf("dir: %s belongs to somebody else", dir)
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("dir: others can write to %s (mode %04o)", dir, info.Mode().Perm())
	}
	var fsys syscall.Statfs_t
	if err := syscall.Statfs(dir, &fsys); err != nil {
		return fmt.Errorf("dir: %w", err)
	}
	if magic := uint32(fsys.Type); magic != tmpfsMagic && magic != ramfsMagic && !allowDisk {
		return fmt.Errorf("dir: %s is not on tmpfs or ramfs: secrets would reach a disk (--allow-disk waives this)", dir)
	}
	return nil
}

// makeDirs is os.MkdirAll with mode 0711 whatever the umask: the files are for others, too.
func makeDirs(dir string) error {
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := makeDirs(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o711); err != nil {
		return err
	}
	return os.Chmod(dir, 0o711)
}
