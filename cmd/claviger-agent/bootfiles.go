package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/internal/cli"
)

const resolvConf = "/etc/resolv.conf"

// bootFilesCommand is for what builds an initial RAM disk: the hooks of
// initramfs-tools and dracut, which know nothing of the configuration.
func bootFilesCommand(s *settings) *cobra.Command {
	var clevis bool
	c := &cobra.Command{
		Use:   "boot-files",
		Short: "List what an initial RAM disk needs so that unlock works there, and check it",
		Long: `List what an initial RAM disk needs so that unlock works there, a line each:

  file PATH      a file that the configuration names, and the configuration
  program PATH   a program that it names
  dhcp           something else has to configure the network

It fails if one is missing, cannot be read as what it should be, or holds a private
key: an initial RAM disk is no secret.`,
		Example: "  claviger-agent boot-files",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// The file alone counts at boot, so the environment of who builds the image must not.
			for _, e := range os.Environ() {
				if name, _, _ := strings.Cut(e, "="); strings.HasPrefix(name, "CLAVIGER_") {
					os.Unsetenv(name)
				}
			}
			if err := s.complete(); err != nil {
				return err
			}
			lines, err := s.bootFiles(!clevis)
			for _, l := range lines {
				cli.Fprintln(cmd.OutOrStdout(), l)
			}
			return err
		},
	}
	c.Flags().BoolVar(&clevis, "clevis", false, "for the clevis pin: the configuration needs no volumes")
	return c
}

// bootFiles checks by the functions that read the files at boot.
func (s *settings) bootFiles(volumes bool) ([]string, error) {
	config, err := filepath.Abs(s.path())
	if err != nil {
		return nil, fmt.Errorf("configuration file: %w", err)
	}
	lines := []string{"file " + config}
	var errs []error
	add := func(kind, field, path string) {
		switch {
		case path == "":
			return
		case !filepath.IsAbs(path):
			errs = append(errs, fmt.Errorf("%s: %q is not an absolute path: at boot there is another current folder", field, path))
		case strings.ContainsAny(path, "\n"):
			errs = append(errs, fmt.Errorf("%s: %q has a line feed in it", field, path))
		default:
			lines = append(lines, kind+" "+path)
		}
	}
	if volumes && len(s.Volumes) == 0 {
		errs = append(errs, errors.New(`volumes: missing: unlock would open nothing`))
	}
	for i, v := range s.Volumes {
		if err := v.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("volumes[%d]: %w", i, err))
		}
	}
	untold := func(error) {} // what is wrong now is returned
	if _, err := s.roots(untold); err != nil {
		errs = append(errs, err)
	}
	if _, err := s.identity(untold); err != nil {
		errs = append(errs, err)
	} else if _, err := os.Stat(s.Identity); err == nil { // else it is the key itself
		add("file", "identity", s.Identity)
	}
	add("file", "ca", s.CA)
	if err := s.TPM.check(); err != nil {
		errs = append(errs, err)
	}
	add("file", "tpm.ak_certificate", s.TPM.AKCertificate)
	add("file", "tpm.ek_certificate", s.TPM.EKCertificate)
	add("file", "tpm.ak_issuers", s.TPM.AKIssuers)
	for i, d := range s.Devices {
		if len(d.Command) == 0 {
			continue
		}
		field := fmt.Sprintf("devices[%d].command", i)
		if _, err := exec.LookPath(d.Command[0]); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", field, err))
		}
		add("program", field, d.Command[0])
	}
	if err := s.Network.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("network.%w", err))
	}
	switch static := s.Network.Address != "" && s.Network.Address != "wait"; {
	case !static:
		lines = append(lines, "dhcp")
	case s.named() && len(s.Network.DNS) == 0:
		if err := nameServers(resolvConf); err != nil {
			errs = append(errs, fmt.Errorf("network.dns: missing, and %w", err))
		}
		add("file", "network.dns", resolvConf)
	}
	for _, l := range lines {
		if path, ok := strings.CutPrefix(l, "file "); ok {
			errs = append(errs, secretIn(path))
		}
	}
	return lines, errors.Join(errs...)
}

// named says whether a broker is given by a name, which has to be resolved.
func (s *settings) named() bool {
	for b := range strings.SplitSeq(string(s.Broker), ",") {
		host, _, err := net.SplitHostPort(strings.TrimSpace(b))
		if _, notAddress := netip.ParseAddr(host); err == nil && notAddress != nil {
			return true
		}
	}
	return false
}

// nameServers wants name servers that are there at boot, too: a stub resolver is not.
func nameServers(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("there are no name servers to take its place: %w", err)
	}
	found := false
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil && a.IsLoopback() {
			return fmt.Errorf("the name server in %s is this machine's own (%s), which does not run at boot", path, a)
		}
		found = true
	}
	if !found {
		return fmt.Errorf("%s names no name server", path)
	}
	return nil
}

// secretIn refuses a private key, whatever else a file is: anybody can read an initial RAM disk.
func secretIn(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if bytes.Contains(b, []byte("PRIVATE KEY-----")) {
		return fmt.Errorf("%s holds a private key, which must not get into an initial RAM disk", path)
	}
	return nil
}

// check reads the files that are named.
func (c tpmConfig) check() error {
	_, ak := c.akCertificate()
	_, ek := c.ekCertificates()
	var issuers error
	if c.AKIssuers != "" {
		_, issuers = c.issuers()
	}
	return errors.Join(ak, ek, issuers)
}
