package netup

import (
	"context"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
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
	if got := (Config{}).Missing(nil); !strings.Contains(got, "no network interface but lo") {
		t.Errorf("without an interface: %q", got)
	}
	c := Config{Interface: "g0", Address: "192.0.2.15/24", Gateway: "192.0.2.2"}
	short, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
	defer cancel()
	if err := c.Up(short); err == nil || !strings.Contains(err.Error(), "no interface g0") {
		t.Errorf("without the interface: %v", err)
	}
	ip(t, "link", "add", "g0", "type", "veth", "peer", "name", "h0")
	if got := (Config{}).Missing(nil); !strings.Contains(got, "g0 is down") {
		t.Errorf("down: %q", got)
	}
	ip(t, "link", "set", "g0", "up")
	if got := (Config{}).Missing(nil); !strings.Contains(got, "g0 has no link") {
		t.Errorf("no link: %q", got)
	}
	ip(t, "link", "set", "h0", "up")
	eventually(t, "g0 has no address", func() string { return (Config{}).Missing(nil) })
	_, unreachable := net.Dial("tcp", "198.51.100.1:1")
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
	if got := (Config{}).Missing(nil); got != "" {
		t.Errorf("up: %q", got)
	}
	if got := (Config{}).Missing(unreachable); !strings.Contains(got, "no route") {
		t.Errorf("%v: %q", unreachable, got)
	}
	// Another address is left as it is, and so is the route.
	c.Address, c.Gateway = "203.0.113.9/24", "203.0.113.1"
	if err := c.Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out := ip(t, "addr", "show", "dev", "g0"); strings.Contains(out, "203.0.113.9") {
		t.Errorf("changed: %s", out)
	}
}

func eventually(t *testing.T, want string, get func() string) {
	t.Helper()
	var got string
	for range 3000 { // a minute
		if got = get(); strings.Contains(got, want) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("got %q, want %q", got, want)
}

// TestFirstInterface: a driver that loads late is waited for, and tunnels are not taken for a card.
func TestFirstInterface(t *testing.T) {
	namespace(t)
	ip(t, "tuntap", "add", "a0", "mode", "tun") // layer 3: no hardware address
	if got := (Config{}).Missing(nil); !strings.Contains(got, "no network interface but lo") {
		t.Errorf("with a tunnel: %q", got)
	}
	added := make(chan error, 1)
	go func(ns *os.File) { // a thread of its own, in this namespace
		defer ns.Close()
		time.Sleep(300 * time.Millisecond)
		added <- exec.Command("nsenter", "--net=/proc/"+strconv.Itoa(os.Getpid())+"/fd/"+strconv.Itoa(int(ns.Fd())), "ip", "link", "add", "g0", "type", "veth", "peer", "name", "h0").Run()
	}(netns(t))
	if err := (Config{Address: "192.0.2.15/24"}).Up(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-added; err != nil {
		t.Fatal(err)
	}
	all := ip(t, "-o", "addr")
	if !strings.Contains(all, "192.0.2.15/24") || strings.Contains(ip(t, "-o", "addr", "show", "dev", "a0"), "192.0.2.15") {
		t.Errorf("addresses: %s", all)
	}
}

func netns(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestResolver asks the configured servers in turn, and says which they are.
func TestResolver(t *testing.T) {
	good, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer good.Close()
	go serveNames(good)
	c := Config{DNS: []string{"127.0.0.1:1", good.LocalAddr().String()}}
	got, err := c.Resolver().LookupHost(t.Context(), "broker.test.")
	if err != nil || len(got) != 1 || got[0] != "192.0.2.7" {
		t.Errorf("%v: %v", got, err)
	}
	c.DNS = c.DNS[:1]
	_, err = c.Resolver().LookupHost(t.Context(), "broker.test.")
	if s := c.unreached(err); !strings.Contains(s, "broker.test.") || !strings.Contains(s, "127.0.0.1:1") {
		t.Errorf("%v: %q", err, s)
	}
	if s := (Config{}).unreached(&net.DNSError{Err: "no such host", Name: "b", Server: "192.0.2.53:53"}); there(resolvConf) && !strings.Contains(s, "192.0.2.53") {
		t.Errorf("by the system's resolver: %q", s)
	}
	if (Config{}).Resolver() != nil {
		t.Error("not the system's")
	}
}

// serveNames answers every question for an IPv4 address with 192.0.2.7, and others with nothing (RFC 1035, 4.1).
func serveNames(c net.PacketConn) {
	buf := make([]byte, 512)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		end := 12 // behind the name, type and class of the only question
		for buf[end] != 0 {
			end += int(buf[end]) + 1
		}
		end += 5
		if end > n {
			continue
		}
		q := slices.Clone(buf[:end])
		q[2], q[3] = 0x81, 0x80
		clear(q[6:12])
		if q[end-3] == 1 { // A
			q[7] = 1
			q = append(q, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7)
		}
		_, _ = c.WriteTo(q, from)
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
		{Address: "10.0.2.15/24", Gateway: "x"}: "gateway", {Address: "wait", Interface: "eth0"}: "address", {DNS: []string{"10.0.2.3", "dns.example"}}: "dns[1]",
	} {
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%+v: %v", *c, err)
		}
	}
	for _, c := range []Config{{}, {Address: "wait", DNS: []string{"10.0.2.3", "[2001:db8::1]:5353", "2001:db8::2"}}, {Address: "2001:db8::15/64", Gateway: "fe80::1"}} {
		if err := c.Validate(); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestRoutes: gateways outside of the address's network, as hosters have them, and addresses with a zone.
func TestRoutes(t *testing.T) {
	for name, c := range map[string]struct {
		config        Config
		address, want string // as ip shows them
	}{
		"IPv4, address alone":   {Config{Address: "192.0.2.15/32", Gateway: "198.51.100.1"}, "192.0.2.15/32", "default via 198.51.100.1 dev g0"},
		"IPv4, another network": {Config{Address: "192.0.2.15/24", Gateway: "198.51.100.1"}, "192.0.2.15/24", "default via 198.51.100.1 dev g0"},
		"IPv6, another network": {Config{Address: "2001:db8::15/128", Gateway: "2001:db8:1::1"}, "2001:db8::15/128", "default via 2001:db8:1::1 dev g0"},
		"IPv6, link local":      {Config{Address: "2001:db8::15/64", Gateway: "fe80::1%g0"}, "2001:db8::15/64", "default via fe80::1 dev g0"},
		"IPv6, zone":            {Config{Address: "2001:db8::15%g0/64", Gateway: "2001:db8::1"}, "2001:db8::15/64", "default via 2001:db8::1 dev g0"},
	} {
		t.Run(name, func(t *testing.T) {
			namespace(t)
			ip(t, "link", "add", "a0", "type", "veth", "peer", "name", "b0") // not the one that a zone names
			ip(t, "link", "add", "g0", "type", "veth", "peer", "name", "h0")
			ip(t, "link", "set", "h0", "up")
			c.config.Interface = "g0"
			if strings.Contains(c.config.Address+c.config.Gateway, "%") {
				c.config.Interface = ""
			}
			if err := c.config.Up(t.Context()); err != nil {
				t.Fatal(err)
			}
			if out := ip(t, "addr", "show", "dev", "g0"); !strings.Contains(out, c.address) {
				t.Errorf("addresses: %s", out)
			}
			if out := ip(t, "route") + ip(t, "-6", "route"); !strings.Contains(out, c.want) {
				t.Errorf("routes: %s", out)
			}
		})
	}
	if err := (Config{Interface: "g0", Address: "fe80::15%g1/64"}).Validate(); err == nil || !strings.Contains(err.Error(), "zone") {
		t.Errorf("two interfaces: %v", err)
	}
}
