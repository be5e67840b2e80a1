// Command init is the first process of a test's guest: it says on the serial
// console what the machine measured, and powers it off. Statically linked, it
// is all that an initramfs needs.
//
// It writes lines of "PCR NUMBER HEX" for the SHA-256 bank, "LOG HEX" with the
// event log, and at last "END", or "FAILED" and why.
package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	defer func() {
		time.Sleep(100 * time.Millisecond) // for the serial line
		_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
	}()
	if err := os.MkdirAll("/dev", 0o755); err != nil {
		return
	}
	_ = syscall.Mount("devtmpfs", "/dev", "devtmpfs", 0, "")
	console, err := os.OpenFile("/dev/ttyS0", os.O_WRONLY, 0)
	if err != nil {
		return
	}
	if err := report(console); err != nil {
		fmt.Fprintf(console, "\nFAILED %v\n", err)
		return
	}
	fmt.Fprintln(console, "END")
}

func report(w io.Writer) error {
	for _, m := range []struct{ target, fs string }{{"/sys", "sysfs"}, {"/sys/kernel/security", "securityfs"}} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount(m.fs, m.target, m.fs, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.fs, err)
		}
	}
	log, err := os.ReadFile("/sys/kernel/security/tpm0/binary_bios_measurements")
	if err != nil {
		return err
	}
	fmt.Fprintln(w)
	for i := range 24 {
		pcr, err := os.ReadFile("/sys/class/tpm/tpm0/pcr-sha256/" + strconv.Itoa(i))
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "PCR %d %s\n", i, strings.ToLower(strings.TrimSpace(string(pcr))))
	}
	fmt.Fprintf(w, "LOG %x\n", log)
	return nil
}
