// The smallest program that behaves like an agent on a node: it says over HTTP which version of what
// it is and whether it is well, and it ends when it is told to. In a pod it is told its node's name;
// a daemon of the node itself asks for it.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// Set when it is built: go build -ldflags "-X main.version=1.0.0".
var (
	name    = "node-agent"
	version = "0.0.0"
	// What is wrong with this version, if anything: the demo builds a broken one with it.
	flaw = ""
)

func main() {
	log.SetFlags(0)
	if flaw != "" {
		log.Fatalf("%s %s: %s", name, version, flaw)
	}
	node := os.Getenv("NODE_NAME")
	if node == "" {
		node, _ = os.Hostname()
	}
	http.HandleFunc("/version", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "%s %s on %s\n", name, version, node)
	})
	http.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	server := &http.Server{Addr: ":8080", ReadHeaderTimeout: 5 * time.Second}

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	go func() {
		<-ctx.Done()
		limit, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		_ = server.Shutdown(limit)
	}()
	log.Printf("%s %s listens on %s", name, version, server.Addr)
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
}
