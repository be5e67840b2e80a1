package peercred

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestUID(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if got := UID(far); got != os.Geteuid() {
		t.Errorf("user %d, want %d", got, os.Geteuid())
	}
	far.Close()
	if got := UID(far); got != -1 {
		t.Errorf("user %d of a closed connection", got)
	}
	if a, _ := net.Pipe(); UID(a) != -1 {
		t.Error("a pipe has a user")
	}
}
