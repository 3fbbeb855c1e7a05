from dqdet.cli import main

main()
