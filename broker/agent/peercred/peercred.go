// Package peercred says who is at the other end of a Unix socket (unix(7), SO_PEERCRED).
package peercred

import (
	"net"
	"syscall"
)

// UID is the user who connected, -1 if the kernel does not say.
func UID(c net.Conn) int {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return -1
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return -1
	}
	uid := -1
	_ = raw.Control(func(fd uintptr) {
		if cred, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
			uid = int(cred.Uid)
		}
	})
	return uid
}
