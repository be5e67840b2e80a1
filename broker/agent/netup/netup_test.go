package netup

import (
	"context"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// namespace moves the test into a network of its own, with a pair of virtual interfaces.
func namespace(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, for a network namespace")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skipf("needs iproute2: %v", err)
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test's goroutine
	if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
		t.Skipf("no network namespaces here: %v", err)
	}
}

func ip(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func TestUp(t *testing.T) {
	namespace(t)
	if got := Lacks(); !strings.Contains(got, "no network interface but lo") {
		t.Errorf("without an interface: %q", got)
	}
	c := Config{Interface: "g0", Address: "192.0.2.15/24", Gateway: "192.0.2.2"}
	short, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
	defer cancel()
	if err := c.Up(short); err == nil || !strings.Contains(err.Error(), "no interface g0") {
		t.Errorf("without the interface: %v", err)
	}
	ip(t, "link", "add", "g0", "type", "veth", "peer", "name", "h0")
	if got := Lacks(); !strings.Contains(got, "g0 is down") {
		t.Errorf("down: %q", got)
	}
	for range 2 { // the second time there is nothing to do
		if err := c.Up(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if out := ip(t, "addr", "show", "dev", "g0"); !strings.Contains(out, "inet 192.0.2.15/24") || !strings.Contains(out, "UP") {
		t.Errorf("addresses: %s", out)
	}
	if out := ip(t, "route"); !strings.Contains(out, "default via 192.0.2.2 dev g0") {
		t.Errorf("routes: %s", out)
	}
	if _, err := net.InterfaceByName("g0"); err != nil {
		t.Error(err)
	}
}

func TestUpIPv6(t *testing.T) {
	namespace(t)
	ip(t, "link", "add", "g0", "type", "veth", "peer", "name", "h0")
	ip(t, "link", "set", "h0", "up")
	if err := (Config{Interface: "g0", Address: "2001:db8::15/64", Gateway: "2001:db8::2"}).Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out := ip(t, "-6", "route"); !strings.Contains(out, "default via 2001:db8::2") {
		t.Errorf("routes: %s", out)
	}
}

func TestValidate(t *testing.T) {
	for c, want := range map[*Config]string{
		{Address: "10.0.2.15"}: "address", {Address: "10.0.2.15/24", Gateway: "fe80::1"}: "gateway", {Gateway: "10.0.2.2"}: "address",
		{Address: "10.0.2.15/24", Gateway: "x"}: "gateway",
	} {
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%+v: %v", *c, err)
		}
	}
}
