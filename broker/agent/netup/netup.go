// Package netup gives a machine an address at boot, where nothing else does: in
// an initramfs without a shell or a DHCP client. It also says what a network
// lacks, for a person at a console.
package netup

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// Config is a static configuration. The zero value leaves the network as it is.
type Config struct {
	Interface string `json:"interface"` // empty: the first with a hardware address
	Address   string `json:"address"`   // "10.0.2.15/24"; "wait", or empty: something else sets it
	Gateway   string `json:"gateway"`   // empty: no default route; it may be outside of the address's network
	// DNS are addresses of name servers, with or without a port, in place of /etc/resolv.conf.
	DNS []string `json:"dns"`
}

const wait = "wait"

// Validate names the field that is wrong.
func (c Config) Validate() error {
	for i, d := range c.DNS {
		if _, err := server(d); err != nil {
			return fmt.Errorf("dns[%d]: %q is not the address of a name server", i, d)
		}
	}
	if c.Address == "" || c.Address == wait {
		if c.Gateway != "" || c.Interface != "" {
			return errors.New("address: want ADDRESS/BITS beside interface and gateway")
		}
		return nil
	}
	_, err := c.static()
	return err
}

// static is what is set: the interface (which a zone may name, too), its address, and the gateway.
type static struct {
	name    string
	address netip.Prefix
	gateway netip.Addr // zero: none
}

func (c Config) static() (s static, err error) {
	bad := fmt.Errorf("address: %q is neither ADDRESS/BITS nor wait", c.Address)
	host, bits, ok := strings.Cut(c.Address, "/")
	a, err := netip.ParseAddr(host)
	if !ok || err != nil {
		return s, bad
	}
	if s.address, err = netip.ParsePrefix(a.WithZone("").String() + "/" + bits); err != nil {
		return s, bad
	}
	if c.Gateway != "" {
		if s.gateway, err = netip.ParseAddr(c.Gateway); err != nil || s.gateway.Is4() != a.Is4() {
			return s, fmt.Errorf("gateway: %q is not an address like %s", c.Gateway, s.address.Addr())
		}
	}
	s.name = c.Interface
	for field, zone := range map[string]string{"address": a.Zone(), "gateway": s.gateway.Zone()} {
		if zone != "" && s.name != "" && zone != s.name {
			return s, fmt.Errorf("%s: its zone is %s, beside %s", field, zone, s.name)
		}
		s.name = cmp.Or(s.name, zone)
	}
	s.gateway = s.gateway.WithZone("")
	return s, nil
}

// server is the host:port of a name server.
func server(s string) (string, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(a, 53).String(), nil
	}
	a, err := netip.ParseAddrPort(s)
	return a.String(), err
}

// Resolver asks the name servers in turn; nil, the system's, if there are none here.
func (c Config) Resolver() *net.Resolver {
	if len(c.DNS) == 0 {
		return nil
	}
	var current atomic.Uint32 // the next one if this does not answer
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		n := current.Load()
		s, err := server(c.DNS[int(n)%len(c.DNS)])
		if err != nil {
			return nil, err
		}
		next := func() { current.CompareAndSwap(n, n+1) } // of several questions at once only one goes on
		var d net.Dialer
		conn, err := d.DialContext(ctx, network, s)
		if err != nil {
			next()
		}
		if u, ok := conn.(*net.UDPConn); ok {
			return question{u, next}, nil
		}
		return conn, err
	}}
}

// question is a connection to a name server. It remains a net.PacketConn, by which net.Resolver tells UDP.
type question struct {
	*net.UDPConn
	failed func()
}

// Read implements net.Conn.
func (q question) Read(b []byte) (int, error) {
	n, err := q.UDPConn.Read(b)
	if err != nil {
		q.failed()
	}
	return n, err
}

// Up waits for the interface and configures it, unless it has an address already.
func (c Config) Up(ctx context.Context) error {
	if err := c.Validate(); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	if c.Address == "" || c.Address == wait {
		return nil
	}
	want, err := c.static()
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	ifi, err := await(ctx, want.name)
	if err != nil {
		return err
	}
	if has, err := addressed(ifi); has || err != nil {
		return err
	}
	s, err := dial()
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	defer s.close()
	if err := s.linkUp(ifi.Index); err != nil {
		return fmt.Errorf("network: set %s up: %w", ifi.Name, err)
	}
	if err := s.addAddress(ifi.Index, want.address); err != nil {
		return fmt.Errorf("network: give %s the address %s: %w", ifi.Name, want.address, err)
	}
	if gw := want.gateway; gw.IsValid() {
		// One that no address of ours reaches is on the link all the same, as with hosters who give a /32.
		if err := s.addDefaultRoute(ifi.Index, gw, !want.address.Contains(gw)); err != nil {
			return fmt.Errorf("network: route by %s: %w", gw, err)
		}
	}
	return nil
}

// await waits for the interface: its driver may still be loading.
func await(ctx context.Context, name string) (*net.Interface, error) {
	for {
		all, err := net.Interfaces()
		if err != nil {
			return nil, fmt.Errorf("network: list interfaces: %w", err)
		}
		for _, i := range all {
			if i.Name == name || name == "" && physical(i) {
				return &i, nil
			}
		}
		select {
		case <-ctx.Done():
			if name != "" {
				return nil, fmt.Errorf("network: there is no interface %s: is its driver loaded?", name)
			}
			return nil, errors.New("network: there is no interface but lo: is a driver missing?")
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func addressed(i *net.Interface) (bool, error) {
	addrs, err := i.Addrs()
	if err != nil {
		return false, fmt.Errorf("network: addresses of %s: %w", i.Name, err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLinkLocalUnicast() {
			return true, nil
		}
	}
	return false, nil
}

// physical leaves out lo, and the tunnels that some kernels make by themselves.
func physical(i net.Interface) bool { return i.Flags&net.FlagLoopback == 0 && len(i.HardwareAddr) == 6 }

// Missing says what keeps this machine from reaching anybody, or nothing. cause
// is why the last connection failed, nil if none did.
func (c Config) Missing(cause error) string {
	if s := noLink(); s != "" {
		return s
	}
	return c.unreached(cause)
}

// unreached says why nobody is reached by a network that is up.
func (c Config) unreached(cause error) string {
	dns, isDNS := errors.AsType[*net.DNSError](cause)
	switch {
	case errors.Is(cause, syscall.ENETUNREACH):
		return "there is no route to the broker: is a gateway configured?"
	case isDNS && len(c.DNS) > 0:
		return fmt.Sprintf("the name %s does not resolve (%s); name servers by the configuration: %s", dns.Name, dns.Err, strings.Join(c.DNS, ", "))
	case isDNS && !there(resolvConf):
		return fmt.Sprintf("the name %s does not resolve: there is no %s, and no network.dns in the configuration", dns.Name, resolvConf)
	case isDNS:
		return fmt.Sprintf("the name %s does not resolve (%s); name server by %s: %s", dns.Name, dns.Err, resolvConf, dns.Server)
	}
	return ""
}

const resolvConf = "/etc/resolv.conf"

func there(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// noLink says what all interfaces lack.
func noLink() string {
	all, err := net.Interfaces()
	if err != nil {
		return ""
	}
	var down []string
	for _, i := range all {
		if i.Flags&net.FlagLoopback != 0 {
			continue
		}
		has, err := addressed(&i)
		switch {
		case err != nil || has && i.Flags&net.FlagRunning != 0:
			return ""
		case !physical(i):
		case i.Flags&net.FlagUp == 0:
			down = append(down, i.Name+" is down")
		case i.Flags&net.FlagRunning == 0: // no carrier, or an operational state that says as much
			down = append(down, i.Name+" has no link: is the cable in?")
		default:
			down = append(down, i.Name+" has no address")
		}
	}
	if down == nil {
		return "there is no network interface but lo: is a driver missing?"
	}
	return strings.Join(down, "; ")
}

// socket is a routing socket (rtnetlink(7)).
type socket struct{ fd int }

func dial() (socket, error) {
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, syscall.NETLINK_ROUTE)
	if err != nil {
		return socket{}, fmt.Errorf("open routing socket: %w", err)
	}
	timeout := syscall.Timeval{Sec: 5}
	if err := errors.Join(
		syscall.Bind(fd, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}),
		syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &timeout),
	); err != nil {
		syscall.Close(fd)
		return socket{}, fmt.Errorf("open routing socket: %w", err)
	}
	return socket{fd}, nil
}

func (s socket) close() { _ = syscall.Close(s.fd) }

var ne = binary.NativeEndian

// ask sends a request and waits for its acknowledgement.
func (s socket) ask(typ, flags uint16, body []byte) error {
	b := make([]byte, syscall.NLMSG_HDRLEN, syscall.NLMSG_HDRLEN+len(body))
	ne.PutUint32(b, uint32(syscall.NLMSG_HDRLEN+len(body)))
	ne.PutUint16(b[4:], typ)
	ne.PutUint16(b[6:], flags|syscall.NLM_F_REQUEST|syscall.NLM_F_ACK)
	ne.PutUint32(b[8:], 1)
	if err := syscall.Sendto(s.fd, append(b, body...), 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	n, _, err := syscall.Recvfrom(s.fd, buf, 0)
	if err != nil {
		return err
	}
	msgs, err := syscall.ParseNetlinkMessage(buf[:n])
	if err != nil {
		return err
	}
	for _, m := range msgs {
		if m.Header.Type == syscall.NLMSG_ERROR && len(m.Data) >= 4 {
			if code := int32(ne.Uint32(m.Data)); code != 0 && syscall.Errno(-code) != syscall.EEXIST {
				return syscall.Errno(-code)
			}
			return nil
		}
	}
	return errors.New("no acknowledgement")
}

func attribute(b []byte, typ uint16, value []byte) []byte {
	b = ne.AppendUint16(b, uint16(4+len(value)))
	b = ne.AppendUint16(b, typ)
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return syscall.AF_INET
	}
	return syscall.AF_INET6
}

// linkUp is RTM_NEWLINK with struct ifinfomsg.
func (s socket) linkUp(index int) error {
	b := make([]byte, syscall.SizeofIfInfomsg)
	ne.PutUint32(b[4:], uint32(index))
	ne.PutUint32(b[8:], syscall.IFF_UP)
	ne.PutUint32(b[12:], syscall.IFF_UP)
	return s.ask(syscall.RTM_NEWLINK, 0, b)
}

// addAddress is RTM_NEWADDR with struct ifaddrmsg.
func (s socket) addAddress(index int, p netip.Prefix) error {
	b := make([]byte, syscall.SizeofIfAddrmsg)
	b[0], b[1] = family(p.Addr()), byte(p.Bits())
	ne.PutUint32(b[4:], uint32(index))
	b = attribute(b, syscall.IFA_LOCAL, p.Addr().AsSlice())
	b = attribute(b, syscall.IFA_ADDRESS, p.Addr().AsSlice())
	return s.ask(syscall.RTM_NEWADDR, syscall.NLM_F_CREATE|syscall.NLM_F_EXCL, b)
}

// addDefaultRoute is RTM_NEWROUTE with struct rtmsg.
func (s socket) addDefaultRoute(index int, gw netip.Addr, onLink bool) error {
	b := make([]byte, syscall.SizeofRtMsg)
	b[0] = family(gw)
	b[4], b[5], b[6], b[7] = syscall.RT_TABLE_MAIN, syscall.RTPROT_BOOT, syscall.RT_SCOPE_UNIVERSE, syscall.RTN_UNICAST
	if onLink {
		ne.PutUint32(b[8:], syscall.RTNH_F_ONLINK)
	}
	b = attribute(b, syscall.RTA_GATEWAY, gw.AsSlice())
	b = attribute(b, syscall.RTA_OIF, ne.AppendUint32(nil, uint32(index)))
	return s.ask(syscall.RTM_NEWROUTE, syscall.NLM_F_CREATE, b)
}
