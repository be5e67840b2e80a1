// Command load plays many SIMULATED guests against a broker started by
// `claviger dev`, and prints what they saw. It is a tool for the people who
// build Claviger: go run ./internal/load --help.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const usage = `Usage: go run ./internal/load MODE [flags]

Modes:
  watch   guests that watch a secret; measures how long a rotation takes to reach all
  storm   guests that boot at once: most fetch a disk key of their own, every tenth an application secret
  bulk    revocations and reference sets written by the thousand beside guests that boot; prints the longest time without a release
  proxy   stands before a Vault and counts how many requests it has at a time; needs no broker

Set up by ". /tmp/claviger-dev/env". The guests are SIMULATED hardware.

  go run ./internal/load watch --guests 1000 --rotations 5
  go run ./internal/load watch --guests 1000 --vault http://127.0.0.1:8200/v1/secret/data/db/reports --vault-token root --resource db/reports
  go run ./internal/load storm --guests 10000 --over 10s
  go run ./internal/load bulk --writes 4000
  go run ./internal/load proxy --listen 127.0.0.1:8201 --vault http://127.0.0.1:8200 --limit 2m
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

// raiseFiles lets this process hold a connection for each guest.
func raiseFiles() error {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("limit of open files: %w", err)
	}
	l.Cur = l.Max
	return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l)
}

type options struct {
	guests, rotations, connections, writes int
	resource, also, vault, token, listen   string
	over, limit                            time.Duration
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 || args[0] == "--help" || args[0] == "-h" {
		os.Stdout.WriteString(usage)
		return nil
	}
	var o options
	f := flag.NewFlagSet(args[0], flag.ContinueOnError)
	f.IntVar(&o.guests, "guests", 100, "how many")
	f.IntVar(&o.connections, "connections", 0, "watch: TCP connections to share; 0: one each")
	f.IntVar(&o.rotations, "rotations", 5, "watch: how often to rotate")
	f.IntVar(&o.writes, "writes", 2000, "bulk: how many records to write")
	f.StringVar(&o.resource, "resource", "", "what to ask for; %d becomes the guest's number (default db/orders, storm: disks/vm-%d)")
	f.StringVar(&o.also, "also", "db/orders", "storm: what every tenth guest asks for in place of --resource; %d as there")
	f.StringVar(&o.vault, "vault", "", "watch: rotate by writing to this KV v2 URL (…/v1/secret/data/PATH) in place of the embedded store; proxy: the Vault's address")
	f.StringVar(&o.token, "vault-token", "", "watch: for --vault")
	f.StringVar(&o.listen, "listen", "127.0.0.1:8201", "proxy: address to listen on")
	f.DurationVar(&o.over, "over", 0, "start the guests spread over this long")
	f.DurationVar(&o.limit, "limit", 10*time.Minute, "stop after this long whatever happens")
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	if err := raiseFiles(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.limit)
	defer cancel()
	if args[0] == "proxy" {
		return proxy(ctx, o)
	}
	if args[0] == "storm" {
		o.resource = cmp.Or(o.resource, "disks/vm-%d")
	}
	o.resource = cmp.Or(o.resource, "db/orders")
	fleet, err := newFleet(o)
	if err != nil {
		return err
	}
	defer fleet.close()
	switch args[0] {
	case "watch":
		return fleet.watch(ctx)
	case "storm":
		return fleet.storm(ctx)
	case "bulk":
		return fleet.bulk(ctx)
	}
	return errors.New("no such mode; see --help")
}
