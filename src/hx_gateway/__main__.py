"""`python -m hx_gateway`: the command line."""

from hx_gateway.cli.main import main

if __name__ == "__main__":
    main()
