package server

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestLock: one process has a folder, and the next one is told whose it is.
func TestLock(t *testing.T) {
	dir := t.TempDir()
	release, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(dir); err == nil || !strings.Contains(err.Error(), "in use by another broker") {
		t.Errorf("got %v", err)
	}
	release()
	again, err := Lock(dir)
	if err != nil {
		t.Fatal("not free after it was released: ", err)
	}
	again()
}

// TestPrivate: what others could read or write is refused, with the mode that it has.
func TestPrivate(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "seal.key")
	if err := os.WriteFile(file, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for mode, good := range map[os.FileMode]bool{0o600: true, 0o400: true, 0o640: false, 0o604: false, 0o644: false, 0o660: false} {
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		if err := checkPrivate(file); (err == nil) != good {
			t.Errorf("%04o: %v", mode, err)
		}
	}
	for mode, good := range map[os.FileMode]bool{0o700: true, 0o755: true, 0o757: false, 0o777: false} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		if err := checkOwner(dir); (err == nil) != good {
			t.Errorf("%04o: %v", mode, err)
		}
	}
	if err := checkOwner(file); err == nil {
		t.Error("a file is no folder")
	}
	if os.Geteuid() != 0 {
		t.Skip("owners are tested as root only")
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, 12345, 12345); err != nil {
		t.Fatal(err)
	}
	if err := checkOwner(dir); err == nil || !strings.Contains(err.Error(), "12345") {
		t.Errorf("somebody else's folder: %v", err)
	}
}
